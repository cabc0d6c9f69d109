"""Two real processes with DDP over gloo."""

from typing import Any

import numpy as np
import pytest


@pytest.fixture
def ranks(lightning_pair: tuple[Any, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return lightning_pair[1]


@pytest.mark.parametrize(
    "case", ["logged", "silent", "rank zero only", "epoch", "validation", "validation on rank zero"]
)
def test_all_ranks_make_the_same_forecasts_and_one_writes_them(ranks: list[Any], case: str) -> None:
    first, second = (rank[case] for rank in ranks)
    assert first["steps"] == second["steps"] == 60
    assert first["told"] == second["told"]
    assert first["history"] == second["history"]
    assert first["metrics"] == second["metrics"]
    assert first["warnings"] == second["warnings"] == {}
    assert first["records"] > 0
    assert second["records"] == 0
    assert first["error"] == second["error"] == ""


@pytest.mark.parametrize("case", ["logged", "silent"])
def test_value_watched_is_the_mean_over_ranks(ranks: list[Any], case: str) -> None:
    losses = np.array([rank[case]["losses"] for rank in ranks])
    told = ranks[0][case]["told"]
    assert [step for step, *_ in told] == list(range(3, 61, 3))
    windows = losses.reshape(2, 20, 3).mean(axis=(0, 2))
    np.testing.assert_allclose([value for _, value, *_ in told], windows, rtol=1e-5)
    assert not np.allclose(losses[0], losses[1])


def test_value_logged_on_rank_zero_only_is_that_ranks(ranks: list[Any]) -> None:
    windows = np.reshape(ranks[0]["rank zero only"]["losses"], (20, 3)).mean(axis=1)
    told = ranks[0]["rank zero only"]["told"]
    np.testing.assert_allclose([value for _, value, *_ in told], windows, rtol=1e-5)


def test_epoch_means_are_means_over_ranks(ranks: list[Any]) -> None:
    losses = np.array([rank["epoch"]["losses"] for rank in ranks])
    told = ranks[0]["epoch"]["told"]
    np.testing.assert_allclose(
        [value for _, value, *_ in told], losses.reshape(2, 6, 10).mean(axis=(0, 2)), rtol=1e-5
    )


def test_values_that_ranks_log_at_different_times_are_one_stream(ranks: list[Any]) -> None:
    first, second = (rank["different times"] for rank in ranks)
    assert first["told"] == second["told"]
    assert first["history"] == second["history"] != []
    assert first["warnings"] == second["warnings"] == {}
    # step t is logged by rank (t - 1) % 2; found at the look at step 4, read from 6 on
    losses = [ranks[(t - 1) % 2]["different times"]["losses"][t - 1] for t in range(1, 61)]
    told = {step: value for step, value, *_ in first["told"]}
    assert list(told)[1:] == list(range(9, 61, 3))
    for step in list(told)[1:]:
        assert told[step] == pytest.approx(np.mean(losses[step - 3 : step]), rel=1e-5)


def test_rank_that_fails_switches_all_off_at_one_step_and_none_waits(ranks: list[Any]) -> None:
    first, second = (rank["one rank fails"] for rank in ranks)
    assert first["steps"] == second["steps"] == 60
    assert (
        [step for step, *_ in first["told"]] == [step for step, *_ in second["told"]] == list(range(3, 21, 3))
    )
    assert any("a rank has failed" in warning for warning in first["warnings"])
    assert any("internal error" in warning for warning in second["warnings"])


def test_ranks_read_at_the_same_steps_whatever_one_has_made_of_them(ranks: list[Any]) -> None:
    first, second = (rank["one rank is deaf"] for rank in ranks)
    assert first["steps"] == second["steps"] == 60
    assert first["told"] == second["told"]
    assert [step for step, *_ in first["told"]] == list(range(3, 61, 3))
    assert first["history"] == ranks[0]["logged"]["history"]
    assert first["warnings"] == {}
    assert second["warnings"] == {"observation left out": 15}  # that of step 18 waited to be read


def test_training_that_is_stopped_early_has_been_read_to_its_last_window(ranks: list[Any]) -> None:
    first, second = (rank["stopped early"] for rank in ranks)
    assert first["steps"] == second["steps"] == 40
    assert first["told"] == second["told"]
    assert [step for step, *_ in first["told"]] == list(range(3, 40, 3))
    assert first["history"][-1][0] < 39
    assert first["warnings"] == second["warnings"] == {}


def test_unknown_name_is_refused_on_all_ranks(ranks: list[Any]) -> None:
    for rank in ranks:
        assert "monitor='loss' is not logged" in rank["unknown"]["error"]
