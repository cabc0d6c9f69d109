"""Real processes that train with Lightning's DDP, resumed on as many ranks or on others."""

from pathlib import Path
from typing import Any

import pytest

from tests.integrations import ddp_restart
from tests.integrations.lightning_runs import QUIET
from tests.integrations.ranks import launch

pytestmark = QUIET


@pytest.fixture
def folder(lightning_pair: tuple[Path, list[dict[str, Any]]]) -> Path:
    return lightning_pair[0]


@pytest.fixture
def two(lightning_pair: tuple[Path, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return lightning_pair[1]


def test_checkpoint_between_two_reads_is_resumed_bit_for_bit(two: list[dict[str, Any]]) -> None:
    whole = two[0]["whole"]
    assert whole["steps"] == 60
    assert len(whole["history"]) > 5
    for rank in two:
        assert rank["whole"] == whole
        assert rank["resumed"] == whole


def test_run_goes_on_with_other_ranks(
    two: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ddp_restart._trainer, "FEWEST_READS", 20)
    monkeypatch.setattr(ddp_restart.due, "LINEAR", 1 / 8)
    monkeypatch.setattr(ddp_restart.due, "RATIO", 1.5)
    alone = ddp_restart.fit(folder / "alone", folder / "whole" / "step=32.ckpt", devices=1)
    # ten steps an epoch before, twenty after: 32 seen, 20 of the fourth epoch's data, and two epochs
    assert alone["steps"] == alone["horizon"] == 32 + (20 - 2) + 2 * 20
    assert "the plan ends at step 90 instead of 60" in " ".join(alone["warnings"])
    then = [point for point in two[0]["whole"]["history"] if point[0] <= 30]
    assert alone["history"][: len(then)] == then
    assert alone["history"][-1][0] == 90


@pytest.mark.slow
def test_four_ranks_and_then_two(tmp_path: Path) -> None:
    four = launch("tests.integrations.ddp_restart", 4, tmp_path)
    for rank in four:
        assert rank["resumed"] == rank["whole"] == four[0]["whole"]
    assert four[0]["whole"]["steps"] == 30
    after = launch("tests.integrations.ddp_restart", 2, tmp_path, str(tmp_path / "whole" / "step=24.ckpt"))
    assert after[0] == after[1]
    assert after[0]["resumed"]["steps"] == after[0]["resumed"]["horizon"]
    before = [point for point in four[0]["whole"]["history"] if point[0] <= 24]
    assert after[0]["resumed"]["history"][: len(before)] == before
