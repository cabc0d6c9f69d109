from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scale_callbacks.breaks import breaks, broken_until
from scale_callbacks.forecast import Forecast, Status
from scale_callbacks.forecaster import LossForecaster
from scale_callbacks.runs import Run, read_runs
from scale_callbacks.schedule import Schedule

RUNS = {run.name: run for run in read_runs([Path(__file__).parent / "data" / "curves" / "loss.npz"])}
STEPS = np.linspace(0.1, 1.0, 80) * 10_000
NONE = np.zeros(80)
WALK = -10_000 / STEPS


def curve(noise: float = 0.0, seed: int = 0) -> np.ndarray:
    white = noise * np.random.default_rng(seed).standard_normal(80)
    return 0.8 + 0.2 * (STEPS / 10_000) ** -0.5 + white


def found(values: np.ndarray, noise: float, turned: np.ndarray = NONE, epochs: np.ndarray = NONE):
    return breaks(STEPS, values, np.full(80, noise**2), WALK, turned, epochs)


@pytest.mark.parametrize("noise", [1e-4, 0.003, 0.03])
def test_noise_is_no_break(noise: float) -> None:
    assert not any(found(curve(noise, seed), noise).any() for seed in range(50))


@pytest.mark.parametrize("move", [-0.2, -0.05, 0.05, 0.3])
def test_a_move_of_the_level_is_a_break_of_its_size(move: float) -> None:
    broken = found(curve(0.003) + move * (np.arange(80) >= 50), 0.003)
    assert not broken[:50].any()
    assert broken[50:] == pytest.approx(move**2, rel=0.4)


def test_a_spike_breaks_the_curve_where_it_begins_and_where_it_ends() -> None:
    spike = 0.5 * np.isin(np.arange(80), (40, 41, 42))
    broken = found(curve(0.003) + spike, 0.003)
    assert np.flatnonzero(np.diff(broken)).tolist() == [39, 42]


def test_what_a_fall_of_the_rate_may_have_brought_is_no_break() -> None:
    later = np.arange(80) >= 50
    assert not found(curve() - 0.3 * later, 0.003, turned=0.9 * later).any()
    assert found(curve() - 0.3 * later, 0.003, turned=0.1 * later).any()


def test_a_fall_where_the_data_start_again_is_no_break_but_a_rise_is() -> None:
    later = 1.0 * (np.arange(80) >= 50)
    assert not found(curve() - 0.3 * later, 0.003, epochs=later).any()
    assert found(curve() + 0.3 * later, 0.003, epochs=later).any()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_few_bins_are_looked_at_as_far_as_they_go(count: int) -> None:
    steps, none = STEPS[:count], np.zeros(count)
    assert not breaks(steps, np.ones(count), none + 1e-6, WALK[:count], none, none).any()


def test_a_run_that_broke_may_break_again() -> None:
    broken = np.where(STEPS > 5_000, 0.04, 0.0)
    at = broken_until(np.array([1_000.0, 9_000.0, 10_000.0, 12_000.0]), STEPS, broken)
    assert at[:3].tolist() == [0.0, 0.04, 0.04]
    assert 0.04 < at[3] < 0.042


def changed(run: Run, factor: float, at: float = 0.6) -> Run:
    """A run whose data change, part of the way through, to others of a higher or lower loss."""
    later = run.steps > at * run.schedule.horizon
    return replace(run, losses=np.where(later, factor * run.losses, run.losses), final=factor * run.final)


def told(run: Run, until: float) -> Forecast:
    forecaster = LossForecaster(run.schedule)
    seen = run.steps <= until * run.schedule.horizon
    forecaster.observe(run.steps[seen], run.losses[seen])
    forecast = forecaster.forecast()
    assert forecast is not None
    return forecast


LONG = [
    "MultiPowerLaw/100M_cosine_24000",
    "lr-scheduling/wsd0.2lin_124m_lr1e-3_50000",
    "gemstones/1280x15",
    "Megatron-LM/mixtral_8x7b_h100",
]


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("factor", [0.8, 0.95, 1.2])
def test_a_run_whose_data_change_is_forecast_on_its_new_level(name: str, factor: float) -> None:
    run = changed(RUNS[name], factor)
    before, after = told(RUNS[name], 0.7), told(run, 0.7)
    assert after.value == pytest.approx(factor * before.value, rel=0.03)
    assert after.low < run.final < after.high
    late = told(run, 0.9)
    assert late.value == pytest.approx(run.final, rel=0.01)
    assert late.high - late.low < after.high - after.low


@pytest.mark.parametrize("name", LONG)
def test_a_loss_that_blew_up_and_came_back_is_forecast_as_if_it_had_not(name: str) -> None:
    run = RUNS[name]
    late = run.steps / run.schedule.horizon - 0.35
    blown = replace(run, losses=run.losses * (1.0 + 0.5 * np.where(late > 0, np.exp(-late / 0.01), 0.0)))
    before, after = told(run, 0.7), told(blown, 0.7)
    assert after.value == pytest.approx(before.value, rel=0.015)
    assert after.low < run.final < after.high
    assert after.high - after.low < 0.15 * run.final


def test_a_loss_read_again_and_again_that_turns_away_from_every_law_is_doubted() -> None:
    steps = np.arange(1, 241)
    losses = np.exp(-3.0 * (steps / 240) ** 0.5 + 1.5 * np.maximum(steps / 240 - 0.75, 0.0) / 0.15)
    losses *= 1.0 + 0.05 * np.random.default_rng(0).standard_normal(240)
    forecaster = LossForecaster(Schedule.constant(1e-4, 240), steps_per_epoch=12)
    forecaster.observe(steps[:216], losses[:216])
    forecast = forecaster.forecast()
    assert forecast is not None
    assert forecast.low < losses[206:216].mean() < forecast.high
    assert forecast.status is Status.UNFAMILIAR
