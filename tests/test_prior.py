import json
from dataclasses import replace

import numpy as np
import pytest

from scale_callbacks.prior import load_prior, log_peak

NAMES = ("population", "start")


@pytest.mark.parametrize("name", NAMES)
def test_a_prior_survives_plain_data(name: str) -> None:
    prior = load_prior(name)
    assert type(prior).from_dict(json.loads(json.dumps(prior.to_dict()))) == prior


@pytest.mark.parametrize("name", NAMES)
def test_every_constant_of_a_prior_makes_sense(name: str) -> None:
    prior = load_prior(name)
    for grid in (prior.exponents, prior.offsets, prior.slopes, prior.drops, prior.speeds, prior.wander):
        assert np.all(np.diff(grid) > 0)
    assert len(prior.drops) == len(prior.border_drops)
    assert len(prior.wander) == len(prior.wander_weights)
    assert all(regime.weight > 0 and abs(regime.tie) < 1 for regime in prior.regimes)
    assert all(sd > 0 for regime in prior.regimes for _, sd in (regime.exponent, regime.slope, regime.drop))
    assert all(len(r.forms) in (0, len(prior.forms) + len(prior.late_forms)) for r in prior.regimes)


def test_kinds_of_runs_are_told_by_length_and_noise_but_never_ruled_out() -> None:
    long, short = load_prior().regimes[:2]
    here, there = (1500, 0.08, 1.0), (50_000, 0.001, 1.0)
    assert short.weigh(*here) / long.weigh(*here) > 10 * short.weigh(*there) / long.weigh(*there)
    assert short.weigh(1e9, 1e-9, 1e-12) > 0


def test_a_low_peak_rate_speaks_for_finetuning_where_it_is_absolute() -> None:
    regimes = {regime.name: regime for regime in load_prior().regimes}
    tuned, trained = regimes["finetuning"], regimes["pretraining"]

    def odds(peak: float) -> float:
        return tuned.weigh(5000, 0.02, peak) / trained.weigh(5000, 0.02, peak)

    assert odds(5e-5) > 5 * odds(1.0) > 25 * odds(1e-3)
    assert odds(1.0) == odds(0.02) == odds(0.0)  # relative, another optimizer's, unknown


def test_many_epochs_speak_for_pictures_and_none_told_for_text() -> None:
    regimes = {regime.name: regime for regime in load_prior().regimes}

    def likeliest(epochs: float, noise: float, peak: float = 1e-3) -> str:
        return max(regimes, key=lambda name: regimes[name].weigh(20_000, noise, peak, epochs))

    assert likeliest(100, 0.005) == likeliest(300, 0.01) == "classifiers"
    assert likeliest(60, 0.15) == "many_epochs"
    assert likeliest(3, 0.05, peak=2e-5) == "finetuning"
    assert likeliest(1, 0.005) == "pretraining"


def test_rates_of_sgd_speak_for_pictures_without_a_jump() -> None:
    regimes = {regime.name: regime for regime in load_prior().regimes}

    def odds(peak: float) -> float:
        return regimes["vision_speech"].weigh(5000, 0.02, peak) / regimes["pretraining"].weigh(
            5000, 0.02, peak
        )

    assert odds(0.1) == pytest.approx(odds(0.05)) == pytest.approx(odds(0.6))
    assert odds(0.1) > 20 * odds(1.0)  # 1 is relative
    assert odds(0.0499) == pytest.approx(odds(0.0501), rel=0.02)
    assert odds(0.0201) == pytest.approx(odds(0.0199), rel=0.02)
    assert log_peak(0.0499) == pytest.approx(log_peak(0.0501), abs=0.01)
    assert log_peak(0.1) == log_peak(1.0) == log_peak(5e-4) == 0.0
    assert log_peak(1e-4) == log_peak(2e-4) < 0.0 < log_peak(1e-3) < log_peak(4e-3) == log_peak(0.01)


def test_widening_runs_between_its_table_entries() -> None:
    prior = load_prior().with_(calibration=((0.1, 1.0, 2.0), (0.9, 1.5, 1.0)))
    assert prior.widening(0.0, 0.0, {}) == 1.0
    assert prior.widening(0.1, 1.0, {}) == pytest.approx(2.0)
    assert prior.widening(1.0, 0.0, {}) == pytest.approx(1.5)
    assert 1.0 < prior.widening(0.5, 0.5, {}) < 2.0


def test_a_kind_widens_in_proportion_to_its_probability_early_and_late_apart() -> None:
    prior = load_prior().with_(calibration=((0.0, 1.0, 1.0), (1.0, 1.0, 1.0)))
    kinds = [
        replace(r, widening=(4.0, 0.25) if r.name == "finetuning" else (1.0, 1.0)) for r in prior.regimes
    ]
    prior = prior.with_(regimes=tuple(kinds))
    assert prior.widening(0.1, 0.0, {"finetuning": 1.0}) == pytest.approx(4.0)
    assert prior.widening(0.9, 0.0, {"finetuning": 1.0}) == pytest.approx(0.25)
    assert prior.widening(0.4, 0.0, {"finetuning": 1.0}) == pytest.approx(4.0)
    assert prior.widening(0.6, 0.0, {"finetuning": 1.0}) == pytest.approx(1.0)
    assert prior.widening(0.1, 0.0, {"finetuning": 0.5, "pretraining": 0.5}) == pytest.approx(2.0)


def test_longer_plans_are_expected_to_end_flatter() -> None:
    pretraining = load_prior().regimes[0]
    slopes = [pretraining.slope_for(horizon)[0] for horizon in (10, 1e3, 2e4, 1e5, 4e5, 1e9)]
    assert slopes[0] == slopes[1] > slopes[2] == pretraining.slope[0] > slopes[3] > slopes[4] == slopes[5]
    short = next(regime for regime in load_prior().regimes if regime.name == "short")
    assert short.slope_for(100)[0] == short.slope_for(1e6)[0] == short.slope[0]


def test_only_language_models_take_their_widths_from_the_table() -> None:
    prior = load_prior().with_(calibration=((0.0, 0.5, 0.5), (1.0, 0.5, 0.5)))
    kinds = {regime.name: regime for regime in prior.regimes}
    assert prior.widening(0.5, 1.0, {"pretraining": 1.0}) == pytest.approx(0.5)
    for name in ("vision_speech", "other", "finetuning"):
        own = np.exp(kinds[name].widened(0.5))
        assert prior.widening(0.5, 1.0, {name: 1.0}) == pytest.approx(own)
        assert own > 0.9
