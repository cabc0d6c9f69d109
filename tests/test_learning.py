import math
from pathlib import Path

import pytest

from scale_callbacks.learning import Case, Search, _clearest, knobs
from scale_callbacks.prior import load_prior
from scale_callbacks.runs import read_runs

CURVES = Path(__file__).parent / "data" / "curves"


@pytest.mark.parametrize("knob", knobs(), ids=lambda knob: knob[0])
def test_every_knob_turns_something_and_keeps_the_prior_sound(knob) -> None:
    _, turn, steps = knob
    start = load_prior("start")
    for step in steps:
        turned = turn(start, step)
        assert turned != start
        assert all(math.isfinite(v) and v > 0 for v in (turned.floor, turned.clock, *turned.wander))


def test_no_fold_listens_to_the_source_it_leaves_out() -> None:
    runs = [run for run in read_runs([CURVES / "loss.npz"]) if run.source in ("gemstones", "parameter-golf")]
    cases = [Case.of(run, (0.3, 0.7)) for run in runs[:2] + runs[-2:]]
    search = Search(cases, load_prior("start"), say=lambda line: None)
    better = [row._replace(error=0.1 * row.error) for row in search.now if row.source == "parameter-golf"]
    worse = [row._replace(error=10.0 * row.error) for row in search.now if row.source == "gemstones"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scale_callbacks.learning.told_by", lambda cases, prior: better + worse)
        search.step(knobs()[0])
    assert search.folds["gemstones"] != load_prior("start")  # only the other source gained
    assert search.folds["parameter-golf"] == load_prior("start")


def test_a_step_is_taken_only_where_sources_agree() -> None:
    assert _clearest({0.5: (0.01, 0.02), 2.0: (-0.01, 0.0)}, 2e-3) is None
    assert _clearest({0.5: (0.03, 0.02), 2.0: (0.01, 0.01)}, 2e-3) is None
    assert _clearest({0.5: (0.05, 0.02), 2.0: (0.01, 0.0)}, 2e-3) == 0.5
    assert _clearest({0.5: (0.001, 0.0)}, 2e-3) is None
