import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scale_callbacks.forecast import Forecast, Status
from scale_callbacks.forecaster import LossForecaster
from scale_callbacks.prior import load_prior
from scale_callbacks.schedule import Schedule

T = 2000
WSD = Schedule.wsd(1e-3, T, warmup=50, cooldown=400)
STEPS = np.arange(1, T + 1)


def losses(schedule: Schedule = WSD, *, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    area = schedule.area(STEPS) / schedule.area(float(T))
    drop = 0.15 * (1.0 - schedule.lr(STEPS) / schedule.peak) * (schedule.warmup < STEPS)
    noises = noise * np.random.default_rng(seed).standard_normal(T)
    return np.asarray(2.0 + 0.4 * np.maximum(area, 1e-3) ** -0.4 - drop + noises)


def fed(until: float = 0.5, values: np.ndarray | None = None, schedule: Schedule = WSD, **settings: object):
    forecaster = LossForecaster(schedule, **settings)  # type: ignore[arg-type]
    count = int(until * T)
    forecaster.observe(STEPS[:count], (losses() if values is None else values)[:count])
    return forecaster


def sound(forecast: Forecast | None) -> bool:
    assert forecast is not None
    numbers = (forecast.value, forecast.low, forecast.high)
    paths = np.array([forecast.path_value, forecast.path_low, forecast.path_high])
    return (
        all(type(number) is float and math.isfinite(number) for number in numbers)
        and forecast.low < forecast.value < forecast.high
        and bool(np.isfinite(paths).all())
        and abs(sum(forecast.weights.values()) - 1.0) < 1e-9
    )


def test_there_is_no_forecast_before_eight_observations() -> None:
    forecaster = LossForecaster(WSD)
    assert forecaster.forecast() is None
    forecaster.observe(STEPS[:7], losses()[:7])
    forecaster.observe(8, float("nan"))
    assert forecaster.forecast() is None
    forecaster.observe(9, 3.0)
    assert sound(forecaster.forecast())


@pytest.mark.parametrize("until", [0.2, 0.5, 0.75, 0.9])
def test_the_interval_holds_the_final_loss_of_lawful_runs(until: float) -> None:
    truth = losses(noise=0.0)[-20:].mean()
    forecasts = [fed(until, losses(seed=seed)).forecast() for seed in range(10)]
    assert sum(forecast.low < truth < forecast.high for forecast in forecasts) >= 7
    assert [forecast.value for forecast in forecasts] == pytest.approx([truth] * 10, rel=0.05)


def test_at_the_end_the_forecast_is_what_was_measured() -> None:
    forecast = fed(1.0).forecast()
    assert forecast.value == pytest.approx(losses()[-20:].mean(), abs=0.005)
    assert forecast.high - forecast.low < 0.03


def test_no_calibration_makes_an_interval_narrower_than_the_noise_of_the_last_losses() -> None:
    sure = load_prior().with_(calibration=((0.0, 1e-3, 1e-3),))
    forecaster = fed(0.9, losses(noise=0.2), prior=sure)
    forecast = forecaster.forecast()
    expected = 1.645 * 0.2 / 20**0.5  # the mean of 20 losses
    assert forecast.high - forecast.value == pytest.approx(expected, rel=0.1)
    assert forecast.value - forecast.low == pytest.approx(expected, rel=0.1)
    assert forecaster.noise_ahead(forecast.value) == pytest.approx(expected, rel=0.1)
    assert fed(0.9, losses(noise=0.0), prior=sure).noise_ahead(2.0) < 0.002


def test_a_higher_level_gives_a_wider_interval() -> None:
    widths = [f.high - f.low for f in (fed(level=level).forecast() for level in (0.5, 0.9, 0.99))]
    assert widths == sorted(widths)


def test_the_path_ends_in_the_forecast_and_passes_what_was_seen() -> None:
    forecast = fed(0.6).forecast()
    value, low, high = forecast.at([T])
    assert (value[0], low[0], high[0]) == (forecast.value, forecast.low, forecast.high)
    seen = np.arange(200, 1200, 50)
    np.testing.assert_allclose(forecast.at(seen)[0], losses(noise=0.0)[seen - 1], rtol=0.02)
    assert len(forecast.path_steps) <= 64
    assert (forecast.path_steps[0], forecast.path_steps[-1]) == (1, T)


def test_forecasting_changes_nothing() -> None:
    often, once = LossForecaster(WSD), LossForecaster(WSD)
    for i in range(0, 1000, 50):
        often.observe(STEPS[i : i + 50], losses()[i : i + 50])
        often.forecast()
    once.observe(STEPS[:1000], losses()[:1000])
    assert often.forecast() == often.forecast() == once.forecast()


def test_a_resumed_run_forecasts_the_same_value() -> None:
    saved = fed(0.4)
    state = json.loads(json.dumps(saved.state_dict(), allow_nan=False))
    restored = LossForecaster(WSD)
    restored.load_state_dict(state)
    assert restored.forecast() == saved.forecast()
    for forecaster in (saved, restored):
        forecaster.observe(STEPS[800:1200], losses()[800:1200])
    assert restored.forecast() == saved.forecast()


def test_a_run_restarted_from_a_checkpoint_forecasts_what_a_straight_one_does() -> None:
    restarted = fed(0.5, losses(seed=1))
    restarted.observe(STEPS[600:1000], losses()[600:1000])
    straight = LossForecaster(WSD)
    straight.observe(STEPS[:600], losses(seed=1)[:600])
    straight.observe(STEPS[600:1000], losses()[600:1000])
    assert restarted.forecast() == straight.forecast()


def test_a_forecast_survives_plain_data() -> None:
    forecast = fed().forecast()
    assert Forecast.from_dict(json.loads(json.dumps(forecast.to_dict()))) == forecast


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-12, 1e12), st.sampled_from([0.1, 0.5, 0.9]))
def test_the_forecast_scales_with_the_loss(scale: float, until: float) -> None:
    plain, scaled = fed(until).forecast(), fed(until, losses() * scale).forecast()
    for name in ("value", "low", "high"):
        assert getattr(scaled, name) == pytest.approx(scale * getattr(plain, name), rel=1e-6)


RNG = np.random.default_rng(0)
ODD_LOSSES = {
    "constant": np.full(T, 2.0),
    "zero": np.zeros(T),
    "negative": losses() - 5.0,
    "crossing zero": losses() - 2.4,
    "falling to zero": np.exp(-STEPS / 50.0),
    "huge": losses() * 1e30,
    "tiny": losses() * 1e-12,
    "rising": 1.0 + STEPS / T,
    "noise": np.abs(RNG.standard_normal(T)),
    "wild": np.exp(8.0 * RNG.standard_normal(T)),
    "two levels": np.where(STEPS % 2, 1.0, 3.0),
    "alternating sign": np.where(STEPS % 2, 1.0, -1.0),
    "one spike": np.where(STEPS == 300, 1e9, 2.0),
    "huge then fine": np.where(STEPS < 20, 1e12, losses()),
}


@pytest.mark.parametrize("name", ODD_LOSSES)
@pytest.mark.parametrize("until", [0.004, 0.1, 0.5, 1.0])
def test_odd_losses_get_a_finite_forecast_inside_its_interval(name: str, until: float) -> None:
    assert sound(fed(until, ODD_LOSSES[name]).forecast())


restarts = 0.5 * (1 + np.cos(np.pi * (STEPS % 500) / 500))
ODD_PLANS = {
    "zero at the end": Schedule.linear(1.0, T),
    "zero for the last half": Schedule.from_points([1, 1000, 1001, T], [1.0, 1.0, 0.0, 0.0]),
    "zero for the first half": Schedule.from_points([1, 1000, 1001, T], [0.0, 0.0, 1.0, 1.0]),
    "restarts": Schedule.from_points(STEPS, restarts),
    "re-warming": Schedule.from_points([1, 800, 1000, 1200, T], [1.0, 0.1, 0.1, 1.0, 0.0]),
    "jumps": Schedule.from_points([1, 500, 501, 1000, 1001, T], [1.0, 1.0, 0.2, 0.2, 2.0, 2.0]),
    "only rising": Schedule.from_points([1, T], [0.0, 1.0]),
    "one point": Schedule.from_points([T], [0.1]),
    "starts late": Schedule.from_points([700, T], [1.0, 0.1]),
    "shorter than trained": Schedule.constant(1.0, 300),
    "one step": Schedule.constant(1.0, 1),
    "much longer": Schedule.cosine(1.0, 10_000_000),
}


@pytest.mark.parametrize("name", ODD_PLANS)
@pytest.mark.parametrize("until", [0.01, 0.4, 0.7, 1.0])
def test_odd_plans_get_a_finite_forecast_inside_its_interval(name: str, until: float) -> None:
    assert sound(fed(until, losses(noise=0.02), ODD_PLANS[name]).forecast())


@pytest.mark.parametrize("left", [1e-200, 1e-90, 0.0])
def test_a_loss_that_falls_to_next_to_nothing_after_wild_values_gets_a_finite_forecast(left: float) -> None:
    steps = np.arange(1.0, 301.0)
    losses = np.where(steps < 20, 1e90 * (1.0 + 0.5 * np.sin(7.3 * steps)), left)
    forecaster = LossForecaster(Schedule.cosine(1e-3, 1000, warmup=10))
    forecaster.observe(steps, losses)
    forecast = forecaster.forecast()
    assert forecast is not None
    assert np.isfinite([forecast.low, forecast.value, forecast.high]).all()
    assert forecast.low <= forecast.value <= forecast.high


def test_going_on_past_the_plan_moves_the_horizon() -> None:
    forecaster = fed(1.0, schedule=Schedule.constant(1e-3, 1500))
    forecast = forecaster.forecast()
    assert (forecast.status, forecast.horizon, forecaster.horizon) == (Status.PAST_HORIZON, T, T)
    assert forecast.value == pytest.approx(losses()[-20:].mean(), rel=0.01)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 90, float("nan")])
def test_a_level_outside_zero_and_one_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        LossForecaster(WSD, level=level)


def test_an_unknown_prior_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'nonsense'"):
        LossForecaster(WSD, prior="nonsense")


@pytest.mark.parametrize("steps", [0, -3, float("inf"), float("nan")])
def test_an_epoch_without_steps_is_refused(steps: float) -> None:
    with pytest.raises(ValueError, match="steps_per_epoch"):
        LossForecaster(WSD, steps_per_epoch=steps)


def test_extra_values_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="train_loss"):
        LossForecaster(WSD).observe([1, 2], [3.0, 2.0], extra={"train_loss": [1.0]})


def test_settings_are_plain_values() -> None:
    assert all(isinstance(v, str | float | int | bool) for v in LossForecaster(WSD).settings.values())


TRAIN = losses(noise=0.05, seed=3) + 0.1


def test_the_train_loss_sharpens_the_forecast_of_a_validation_loss() -> None:
    plan = Schedule.constant(1e-3, T, warmup=20)
    truth = losses(plan, noise=0.0)
    rows = np.arange(99, 600, 50)
    held, widths = 0, []
    for seed in range(8):
        alone, both = LossForecaster(plan), LossForecaster(plan)
        train = truth + 0.01 * np.random.default_rng(10 + seed).standard_normal(T)
        noisy = truth + 0.02 * np.random.default_rng(seed).standard_normal(T)
        alone.observe(STEPS[rows], noisy[rows])
        both.observe(
            STEPS[:600],
            np.where(np.isin(STEPS, STEPS[rows]), noisy, np.nan)[:600],
            extra={"train_loss": train[:600]},
        )
        wide, narrow = alone.forecast(), both.forecast()
        assert wide.value != narrow.value
        held += narrow.low < truth[-20:].mean() < narrow.high
        widths.append(((narrow.high - narrow.low), (wide.high - wide.low)))
    assert held >= 6
    assert np.mean([narrow for narrow, _ in widths]) < 0.9 * np.mean([wide for _, wide in widths])


def test_a_train_loss_survives_a_restart() -> None:
    saved = LossForecaster(WSD)
    saved.observe(STEPS[:500], losses()[:500], extra={"train_loss": TRAIN[:500]})
    restored = LossForecaster(WSD)
    restored.load_state_dict(json.loads(json.dumps(saved.state_dict(), allow_nan=False)))
    assert restored.forecast() == saved.forecast()


def test_an_earlier_run_of_the_same_set_up_brings_the_forecast_closer() -> None:
    truth = losses(noise=0.0)[-20:].mean()
    plain, taught = fed(0.3).forecast(), fed(0.3, references=[fed(1.0, losses(seed=9))]).forecast()
    assert abs(taught.value - truth) < abs(plain.value - truth)
    assert taught.low < truth < taught.high


def test_a_reference_may_have_had_another_kind_of_plan() -> None:
    constant = Schedule.constant(1e-3, T)
    reference = fed(1.0, losses(constant), schedule=constant)
    assert sound(fed(0.3, references=[reference]).forecast())
    assert sound(fed(0.3, losses(constant), schedule=constant, references=[fed(1.0)]).forecast())


def test_a_reference_that_saw_too_little_teaches_nothing() -> None:
    assert fed(0.3, references=[LossForecaster(WSD)]).forecast() == fed(0.3).forecast()


@pytest.mark.parametrize("epochs", [2, 5, 24])
def test_falls_at_epoch_borders_are_foreseen_when_they_are_told(epochs: int) -> None:
    length = T / epochs
    values = 2.0 * 0.85 ** np.floor((STEPS - 1) / length) + 0.5 * np.exp(-STEPS / 30.0)
    values *= np.exp(0.05 * np.random.default_rng(0).standard_normal(T))
    truth = values[-20:].mean()
    until = 0.6 if epochs == 2 else 0.5
    told = fed(until, values, Schedule.constant(1e-4, T), steps_per_epoch=length).forecast()
    untold = fed(until, values, Schedule.constant(1e-4, T)).forecast()
    assert told.low < truth < told.high
    assert epochs == 2 or abs(told.value - truth) < abs(untold.value - truth)
    assert told.weights["epochs"] > 0.5


def test_an_interval_is_wider_just_after_the_rate_falls_than_once_that_has_sunk_in() -> None:
    schedule = Schedule.multi_step(1e-3, T, milestones=[1200], gamma=0.1)
    widths = []
    for step in (1205, 1500):
        forecaster = LossForecaster(schedule)
        forecaster.observe(STEPS[:step], losses(schedule, noise=0.002)[:step])
        forecast = forecaster.forecast()
        assert forecast is not None
        widths.append(forecast.high - forecast.low)
    assert widths[0] > 2.0 * widths[1]


def test_what_is_stirred_by_a_fall_of_the_rate_widens_the_forecast() -> None:
    schedule = Schedule.multi_step(1e-3, T, milestones=[1200], gamma=0.1)
    widths = []
    for stir in (0.0, 0.02):
        forecaster = LossForecaster(schedule, prior=load_prior().with_(stir=(stir, 0.02)))
        forecaster.observe(STEPS[:1205], losses(schedule, noise=0.002)[:1205])
        forecast = forecaster.forecast()
        assert forecast is not None
        widths.append(forecast.high - forecast.low)
    assert widths[1] > 1.05 * widths[0]


def test_a_higher_peak_rate_promises_a_deeper_cooldown_and_a_relative_one_nothing() -> None:
    plans = [Schedule.wsd(peak, T, warmup=50, cooldown=400) for peak in (2e-4, 1e-3, 4e-3)]
    values = [fed(0.6, schedule=plan).forecast().value for plan in plans]
    assert values[0] > 1.01 * values[1] > 1.02 * values[2]
    relative = [Schedule.wsd(peak, T, warmup=50, cooldown=400) for peak in (1.0, 3.0)]
    first, second = (fed(0.6, schedule=plan).forecast().value for plan in relative)
    assert first == pytest.approx(second, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_whose_loss_falls_with_the_rate_alone_is_doubted_early_and_found_late(seed: int) -> None:
    horizon = 100_000
    plan = Schedule.cosine(1e-3, horizon, warmup=5000)
    steps = np.arange(250, horizon + 1, 250)
    area = plan.area(steps) / plan.area(horizon)
    losses = 0.4 + 0.6 * area**-0.5 + 0.6 * plan.lr(steps) / plan.peak  # as image classifiers have it
    losses *= 1.0 + 0.015 * np.random.default_rng(seed).standard_normal(len(steps))
    truth = losses[-4:].mean()
    forecaster, told = LossForecaster(plan), {}
    for until in (0.2, 0.4, 0.7):
        new = steps[(steps <= until * horizon) & (steps > (forecaster.curve.last_step or 0))]
        forecaster.observe(new, losses[new // 250 - 1])
        told[until] = forecaster.forecast()
    assert told[0.2].low < truth < told[0.2].high
    assert told[0.2].high - told[0.2].low > 0.2 * truth
    assert told[0.7].value == pytest.approx(truth, rel=0.08)
    assert told[0.7].low < truth < told[0.7].high


def test_above_a_forecast_it_is_the_loss_that_is_widened_and_not_its_log() -> None:
    population = load_prior("population")
    apart = []
    for factor in (1.0, 5.0):
        kinds = [replace(kind, widening=(factor, factor)) for kind in population.regimes]
        prior = population.with_(regimes=tuple(kinds), calibration=((0.5, 1.0, 1.0),))
        steps = np.arange(20, 500, 20.0)
        forecaster = LossForecaster(WSD, prior=prior, steps_per_epoch=10.0)
        forecaster.observe(steps, 0.2 + 3.0 * steps**-0.3)
        told = forecaster.forecast()
        assert told is not None
        apart.append((told.value, np.log(told.value / told.low), told.high - told.value))
    (value, below, above), (same, far_below, far_above) = apart
    assert value == same
    assert above > 0.05 * value
    assert far_above == pytest.approx(5.0 * above, rel=0.02)
    assert far_below == pytest.approx(5.0 * below, rel=0.02)


@pytest.mark.parametrize("with_train", [False, True])
def test_a_validation_loss_that_rises_is_expected_to_go_on_rising(with_train: bool) -> None:
    steps = np.arange(50, T + 1, 50.0)
    dice = np.random.default_rng(0)
    fall, rise = 1.2 * (steps / 50) ** -1.0, 0.4 * np.maximum(steps / T - 0.2, 0.0)
    validation = np.exp(0.3 + fall + rise + 0.003 * dice.normal(size=len(steps)))
    train = 0.3 + 2.0 * (steps / 50) ** -0.6 + 0.01 * dice.normal(size=len(steps))
    seen = steps <= 0.6 * T
    forecaster = LossForecaster(WSD, steps_per_epoch=T / 5)
    extra = {"train_loss": train[seen]} if with_train else None
    forecaster.observe(steps[seen], validation[seen], extra=extra)
    told = forecaster.forecast()
    assert told is not None
    assert told.weights["overfitting"] > 0.5
    assert told.low < validation[-1] < told.high
    assert told.value > 1.05 * validation[seen][-1]


def test_a_loss_is_expected_to_rise_only_where_the_data_are_read_again() -> None:
    laws = [fed(steps_per_epoch=epoch).forecast().weights for epoch in (None, float(T), T / 2)]
    assert ["overfitting" in weights for weights in laws] == [False, False, True]
