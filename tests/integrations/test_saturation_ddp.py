"""Two real processes with DDP over gloo stop together."""

from typing import Any

import pytest


@pytest.fixture
def ranks(lightning_pair: tuple[Any, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return lightning_pair[1]


def test_ranks_stop_at_one_step_for_one_reason(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["saturation sound"] for rank in ranks)
    assert first == second
    assert first["reason"] == "saturated"
    assert first["steps"] == first["stopped"] < 200


def test_rank_that_would_go_on_stops_with_the_other(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["saturation deaf"] for rank in ranks)
    assert first["steps"] == second["steps"] == ranks[0]["saturation sound"]["steps"]
    assert second["stopped"] == first["stopped"]
