import math
from pathlib import Path

import numpy as np
import pytest

from scale_callbacks.learning import Case, Search, Told, by_source, calibrated, gain, knobs, log_score, table
from scale_callbacks.prior import load_prior
from scale_callbacks.runs import read_runs

CURVES = Path(__file__).parent / "data" / "curves"


def told(error: float, below: float = 0.1, above: float = 0.1, source: str = "a", share: float = 0.5) -> Told:
    return Told(source, "run", True, share, error, below, above, 0.0)


def test_the_score_rewards_being_right_and_being_sure_when_right() -> None:
    right, wrong = log_score([told(0.01), told(0.2)])
    assert right < wrong
    sure, unsure = log_score([told(0.001, 0.01, 0.01), told(0.001)])
    assert sure < unsure
    boast, doubt = log_score([told(0.2, 0.01, 0.01), told(0.2)])
    assert boast > doubt


def test_a_gain_leaves_its_fold_out() -> None:
    before = {"a": (1.0, 1.0), "b": (1.0, 1.0)}
    after = {"a": (0.0, 1.0), "b": (2.0, 1.0)}
    assert gain(before, after, "b") == 1.0
    assert gain(before, after, "a") == -1.0
    assert gain(before, after, "") == 0.0


def test_sources_weigh_by_the_root_of_their_number() -> None:
    scores = by_source([told(0.0)] * 4 + [told(0.0, source="b")])
    assert scores["a"][1] == 2.0
    assert scores["b"][1] == 1.0


def test_widths_are_set_to_hold_what_they_say() -> None:
    rng = np.random.default_rng(0)
    rows = [told(float(e), share=s) for e in rng.normal(0.0, 0.12, 200) for s in (0.3, 0.5)]
    prior = calibrated(load_prior().with_(calibration=((0.0, 1.0, 1.0),)), rows, shrink=1.0)
    factor = prior.widening(0.5, 0.0, {})
    assert np.mean([abs(row.error) < factor * 0.1 for row in rows if row.share == 0.5]) == pytest.approx(
        0.9, abs=0.02
    )


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
    scores = iter([{"gemstones": (9.0, 1.0), "parameter-golf": (-9.0, 1.0)}] * 2)
    search.scores = {"gemstones": (0.0, 1.0), "parameter-golf": (0.0, 1.0)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scale_callbacks.learning.by_source", lambda rows: next(scores))
        search.step(knobs()[0])
    assert search.folds["gemstones"] != load_prior("start")  # only the other source gained
    assert search.folds["parameter-golf"] == load_prior("start")


def test_the_table_tells_median_tail_coverage_and_width() -> None:
    text = table([told(0.01), told(-0.02), told(0.3)])
    assert text == "  50%: median 2.00 p90 24.40 bias +1.00 coverage 0.67 width 20.0 n 3"
