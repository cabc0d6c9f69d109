"""Plain torch loops on several real processes: one mean, one forecast, one decision, and nobody waits."""

from typing import Any

import numpy as np
import pytest


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)])
def ranks(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("torch_pair" if request.param == 2 else "torch_four")


@pytest.mark.parametrize("case", ["ddp", "sharded"])
def test_every_rank_forecasts_the_mean_loss_over_ranks(ranks: list[dict[str, Any]], case: str) -> None:
    results = [rank[case] for rank in ranks]
    losses = np.array([result["losses"] for result in results])
    assert len({tuple(result["losses"]) for result in results}) == len(ranks)  # each has data of its own
    means = losses.mean(axis=0).reshape(-1, 2).mean(axis=1)
    for result in results:
        np.testing.assert_allclose(result["told"], means, rtol=1e-12)
        assert result["forecast"] == results[0]["forecast"] is not None
        assert (result["steps"], result["off"], result["faults"]) == (80, False, 0)


def test_parameters_are_spread_over_the_ranks(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["sharded"]["shard"][0] * len(ranks) == rank["sharded"]["whole"][0]


def test_ranks_stop_at_the_step_rank_0_decides_on(ranks: list[dict[str, Any]]) -> None:
    results = [rank["stops"] for rank in ranks]
    assert "saturated" in results[0]["decision"]
    assert {result["steps"] for result in results} == {results[0]["steps"]}
    assert 40 < results[0]["steps"] < 400
    assert [result["faults"] for result in results] == [0] * len(ranks)


def test_rank_that_runs_out_of_data_leaves_the_others_training(ranks: list[dict[str, Any]]) -> None:
    *others, short = [rank["uneven"] for rank in ranks]
    assert short["steps"] == 40
    assert short["faults"] == 0
    for result in others:
        assert result["steps"] == 80
        assert result["faults"] == 1  # the rank that left is missed once, and not waited for
        assert result["off"]
        assert result["seconds"] < 45  # the timeout is 60 s
        assert result["told"][:20] == short["told"]
        locally = np.reshape(result["losses"], (-1, 2)).mean(axis=1)
        np.testing.assert_allclose(result["told"][20:], locally[20:], rtol=1e-12)
        assert result["forecast"] is not None
