import numpy as np
import pytest

from scale_callbacks.calibration import (
    Told,
    by_source,
    calibrated,
    fine_calibrated,
    gain,
    log_score,
    table,
    widened,
)
from scale_callbacks.prior import load_prior


def told(error: float, below: float = 0.1, above: float = 0.1, source: str = "a", share: float = 0.5) -> Told:
    return Told(source, "run", True, share, error, below, above, 0.0)


def test_the_score_rewards_being_right_and_being_sure_when_right() -> None:
    right, wrong = log_score([told(0.01), told(0.2)])
    assert right < wrong
    sure, unsure = log_score([told(0.001, 0.01, 0.01), told(0.001)])
    assert sure < unsure
    boast, doubt = log_score([told(0.2, 0.01, 0.01), told(0.2)])
    assert boast > doubt


def test_a_gain_comes_with_its_error_over_sources() -> None:
    before = {"a": (1.0, 1.0), "b": (1.0, 1.0)}
    assert gain(before, {"a": (0.0, 1.0), "b": (0.0, 1.0)}) == (1.0, 0.0)
    mean, error = gain(before, {"a": (0.0, 1.0), "b": (2.0, 1.0)})
    assert mean == 0.0
    assert error == pytest.approx(0.5**0.5)


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


def test_the_noise_of_single_losses_is_neither_widened_nor_narrowed() -> None:
    prior = load_prior().with_(calibration=((0.0, 1.0, 1.0),))
    rng = np.random.default_rng(0)
    noise = 0.08  # of 0.1; the rest, 0.06, is what the laws do not know, and is half as much in truth
    errors = rng.normal(0.0, np.hypot(noise, 0.03) / 1.645, 2000)
    rows = [told(float(e))._replace(noise=noise) for e in errors]
    least = calibrated(prior, rows, shrink=1.0).widening(0.5, 0.0, {})
    assert least == pytest.approx(0.6, abs=0.01)
    after = widened(rows, prior, "")
    assert noise < after[0].below == after[0].above < 0.1
    assert np.mean([abs(row.error) < row.below for row in after]) == pytest.approx(0.9, abs=0.02)
    loud = [told(float(e))._replace(noise=noise) for e in 3.0 * errors]
    wide = widened(loud, prior, "")[0].below
    assert np.hypot(noise, 0.06) < wide < 2.5 * 0.1


def test_widths_asked_for_by_the_other_sources_leave_one_out() -> None:
    prior = load_prior("start")
    wrong = [told(0.3, source="a") for _ in range(20)] + [told(0.05, source="b") for _ in range(20)]
    assert widened(wrong, prior, "b")[0].below > widened(wrong, prior, "a")[0].below
    assert {row.source for row in widened(wrong, prior, "b")} == {"a"}


def test_fine_tuning_runs_widen_their_own_kind_early_and_late_apart() -> None:
    prior = load_prior("start")
    rows = [told(0.2, share=0.2)] * 20 + [told(0.05, share=0.9)] * 20
    before, after = (
        next(regime.widening for regime in prior_.regimes if regime.name == "finetuning")
        for prior_ in (prior, fine_calibrated(prior, rows))
    )
    assert after[0] == pytest.approx(2.0 * before[0])
    assert after[1] == pytest.approx(0.5 * before[1])
    assert fine_calibrated(prior, rows).regimes[0] == prior.regimes[0]


def test_the_table_tells_median_tail_coverage_and_width() -> None:
    text = table([told(0.01), told(-0.02), told(0.3)])
    assert text == "  50%: median 2.00 p90 24.40 bias +1.00 coverage 0.67 width 20.0 n 3"
