"""What real processes agree on, with peers that come late, leave, or die."""

import copy
import math
import subprocess
import sys
from typing import Any

import pytest

from scale_callbacks.integrations.torch import Agreement


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)])
def ranks(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("torch_pair" if request.param == 2 else "torch_four")


def test_single_process_answers_itself() -> None:
    agreement = Agreement()
    assert agreement.broadcast(True) is True
    assert agreement.broadcast(False) is False
    assert agreement.mean(2.5) == 2.5
    assert not agreement.off
    agreement.close()
    assert agreement.off
    assert agreement.broadcast(True) is False
    assert agreement.faults == 0


@pytest.mark.parametrize("timeout", [0, -1.0, math.inf, math.nan])
def test_timeout_that_is_none_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="number of seconds above 0"):
        Agreement(timeout=timeout)


def test_copy_is_off_where_the_original_talks_to_others() -> None:
    agreement = Agreement()
    assert not copy.deepcopy(agreement).off
    agreement._group.append(object())
    assert copy.deepcopy(agreement).off
    assert not agreement.off


AT_THE_END = """
import atexit, weakref
atexit.register(lambda: print("gone" if group() is None else "still there"))  # runs last
from scale_callbacks.integrations.torch import Agreement
class Group: ...
agreement = Agreement()
agreement._group.append(Group())
group = weakref.ref(agreement._group[0])
print("there" if group() else "gone already")
"""


def test_group_that_nobody_closed_is_gone_before_the_interpreter_ends() -> None:
    told = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, check=True)
    assert told.stdout.split("\n")[:2] == ["there", "gone"]


def test_ranks_agree(ranks: list[dict[str, Any]]) -> None:
    for rank in (r["sound"] for r in ranks):
        assert rank["wanted by rank 0"] is True
        assert rank["wanted by others"] is False
        assert rank["mean"] == (len(ranks) - 1) / 2
        assert rank["mean of one"] == 3.0
        assert rank["mean of none"] == "nan"
        assert rank["rounds"] == [10.0 * i + (len(ranks) - 1) / 2 for i in range(5)]
        assert (rank["off"], rank["faults"], rank["reports"]) == (False, 0, [])


def test_late_rank_is_waited_for(ranks: list[dict[str, Any]]) -> None:
    for rank in (r["comes_late"] for r in ranks):
        assert rank["first"] is True
        assert rank["second"] == (len(ranks) - 1) / 2
        assert (rank["off"], rank["faults"]) == (False, 0)


@pytest.mark.parametrize(
    ("case", "longest"),
    [("never_comes", 20), ("comes_too_late", 20), ("leaves", 20), ("forgets", 20), ("dies", 20)],
)
def test_lost_peer_is_reported_once_and_waited_for_once_at_most(
    ranks: list[dict[str, Any]], case: str, longest: float
) -> None:
    for i, rank in enumerate(r[case] for r in ranks[:-1]):
        assert rank["answers"] == [False, False, float(i)]
        assert (rank["off"], rank["faults"]) == (True, 1)
        assert len(rank["reports"]) == 1
        assert "training goes on" in rank["reports"][0]
        assert rank["seconds"] < longest  # the timeouts are 1 s, or 60 s where no wait is due


def test_rank_that_comes_too_late_does_not_wait(ranks: list[dict[str, Any]]) -> None:
    late = ranks[-1]["comes_too_late"]
    assert late["answers"] == [False, False, float(len(ranks) - 1)]
    assert (late["off"], late["faults"]) == (True, 1)
    assert late["seconds"] < 0.9
    assert "given up" in late["reports"][0]


def test_rank_that_leaves_reports_nothing(ranks: list[dict[str, Any]]) -> None:
    assert ranks[-1]["leaves"] == {"before": True, "off": True, "faults": 0, "reports": []}


def test_different_questions_end_the_agreement_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    for rank in (r["differs"] for r in ranks):
        assert rank["answer"] in (False, 5.0)
        assert (rank["off"], rank["faults"]) == (True, 1)
        assert "not at the same step" in rank["reports"][0]


def test_groups_of_the_user_are_left_alone(ranks: list[dict[str, Any]]) -> None:
    assert [rank["own_groups"]["sum"] for rank in ranks] == [len(ranks)] * len(ranks)
