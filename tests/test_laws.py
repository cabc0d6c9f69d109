import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scale_callbacks.laws.annealing import AnnealingArea, stirred
from scale_callbacks.laws.base import Term, cost, plan_of
from scale_callbacks.laws.epochs import EpochBorders
from scale_callbacks.laws.multi_power import MultiPower
from scale_callbacks.laws.overfitting import Overfitting
from scale_callbacks.laws.power import PowerOfArea, PowerOfSteps, decay
from scale_callbacks.schedule import Schedule

TERMS: dict[str, Term] = {
    "area": PowerOfArea((-0.2, 0.0, 0.3, 1.0), (-0.015, 0.0, 0.012)),
    "steps": PowerOfSteps((0.0, 0.5)),
    "annealing": AnnealingArea(((0.01, 1.0), (0.1, 0.1))),
    "multi_power": MultiPower((50.0, 2000.0), ((0.3, 1.0), (0.5, 0.4)), 0.6),
    "epochs": EpochBorders(None, ((1.0, 0.0),)),
    "overfitting": Overfitting((0.0, 0.3)),
}
PLANS = {
    "cosine": Schedule.cosine(3e-4, 10_000, warmup=200),
    "wsd": Schedule.wsd(3e-4, 10_000, warmup=200, cooldown=2000),
    "constant": Schedule.constant(1.0, 500),
    "steps": Schedule.multi_step(1.0, 900, milestones=[300, 600]),
    "one step": Schedule.constant(1.0, 1),
}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("plan", PLANS)
def test_a_term_is_finite_and_zero_at_the_horizon(term: str, plan: str) -> None:
    tabulated = plan_of(PLANS[plan])
    features = TERMS[term](tabulated).features
    assert features.shape[1] == len(tabulated.steps)
    assert np.isfinite(features).all()
    np.testing.assert_allclose(features[:, -1], 0.0, atol=1e-12)


@pytest.mark.parametrize("term", TERMS)
def test_a_term_sees_neither_the_unit_of_the_rate_nor_the_length_of_the_run(term: str) -> None:
    small = Schedule.wsd(1e-4, 20_000, warmup=200, cooldown=4000)
    large = Schedule.wsd(3.0, 200_000, warmup=2000, cooldown=40_000)
    a, b = (TERMS[term](plan_of(schedule)).features for schedule in (small, large))
    np.testing.assert_allclose(a, b, rtol=0.01, atol=1e-3)


@given(st.floats(-0.4, 1.5), st.floats(-0.02, 0.02))
def test_a_decay_has_slope_minus_one_in_log_area_at_the_horizon(exponent: float, offset: float) -> None:
    x = np.exp(np.array([-1e-4, 0.0, 1e-4]))
    y = decay(x, exponent, offset)
    assert y[1] == pytest.approx(0.0, abs=1e-9)
    assert (y[2] - y[0]) / 2e-4 == pytest.approx(-1.0, rel=1e-3)


def test_a_decay_is_the_power_law_up_to_level_and_scale() -> None:
    x = np.linspace(0.05, 1.0, 50)
    feature = decay(x, 0.5, 0.0)
    np.testing.assert_allclose(feature * 0.5 + 1.0, x**-0.5, rtol=1e-12)


def test_exponents_pass_through_zero_without_a_jump() -> None:
    x = np.linspace(0.05, 1.0, 50)
    np.testing.assert_allclose(decay(x, 1e-7, 0.0), decay(x, 0.0, 0.0), atol=1e-5)


def test_without_falls_there_is_no_drop() -> None:
    plan = plan_of(PLANS["constant"])
    assert len(TERMS["annealing"](plan)) == len(TERMS["multi_power"](plan)) == 0


def test_the_annealing_drop_is_the_annealing_area_of_the_paper() -> None:
    schedule = PLANS["wsd"]
    plan = plan_of(schedule)
    memory = 1000 / schedule.horizon
    feature = AnnealingArea(((memory, 1.0),))(plan).features[0]
    exact = np.asarray(schedule.annealing_area(plan.steps, decay=0.999)) / schedule.peak * 1e-3
    np.testing.assert_allclose(feature, exact[-1] - exact, atol=0.01)


def test_what_a_high_rate_costs_may_saturate() -> None:
    rates = np.array([0.0, 0.01, 0.1, 1.0])
    np.testing.assert_allclose(cost(rates, 1.0), rates)
    np.testing.assert_allclose(cost(rates, 0.1), [0.0, 0.0917, 0.5263, 1.0], atol=1e-4)
    plan = plan_of(PLANS["steps"])  # the rate falls to a tenth twice
    equal, saturating = AnnealingArea(((1e-3, 1.0), (1e-3, 0.1)))(plan).features
    shares = [np.interp([450, 899], plan.steps, it) / it[0] for it in (equal, saturating)]
    np.testing.assert_allclose(shares, [[0.09, 0.0], [0.48, 0.0]], atol=0.02)


def test_an_epoch_in_which_the_area_only_rounds_brings_nothing() -> None:
    plan = plan_of(Schedule.linear(2.9991317564254905, 52))
    with np.errstate(invalid="raise"):  # a share of an area may come out as -1e-17
        features = EpochBorders(0.2969798734380016, ((1.0, 0.0), (0.7, 1.0)))(plan).features
    assert np.isfinite(features).all()


def test_overfitting_rises_from_its_onset_to_the_end() -> None:
    plan = plan_of(PLANS["constant"])
    early, late = Overfitting((0.0, 0.4))(plan).features
    np.testing.assert_allclose(early, plan.time - 1.0)
    np.testing.assert_allclose(np.interp([0.2, 0.4, 0.7, 1.0], plan.time, late), [-1, -1, -0.5, 0], atol=0.01)


def test_the_multi_power_drop_is_the_sum_of_the_paper() -> None:
    steps = np.arange(0, 1001)
    rates = np.where(steps <= 600, 1.0, 0.4)
    plan = plan_of(Schedule.from_points(steps, rates))
    feature = MultiPower((2000.0,), ((0.6, 1.0),), 0.5)(plan).features[0]
    total = rates[1:].sum()
    since = np.maximum(plan.steps - 600.0, 0.0) * 0.4 / total
    lowered = 0.6 * (1.0 - (1.0 + 2000.0 * 0.4**-0.6 * since) ** -0.5)
    later = np.abs(plan.steps - 601.0) > 2.0
    np.testing.assert_allclose(feature[later], (lowered[-1] - lowered)[later], atol=2e-3)


def test_a_high_rate_that_saturates_costs_less_to_begin_with_and_more_at_the_end() -> None:
    plan = plan_of(PLANS["wsd"])
    straight, bent = MultiPower((1e6,), ((0.0, 1.0), (0.0, 0.4)), 5.0)(plan).features
    cooling = (plan.rate < 0.99) & (plan.time > 0.5)
    assert np.all(bent[cooling] >= straight[cooling] - 1e-3)
    half = int(np.argmin(np.abs(plan.rate - 0.5) + (plan.time < 0.5)))
    rate = plan.rate[half]
    assert bent[half] == pytest.approx(rate / (0.4 + 0.6 * rate), abs=0.03)


def test_sudden_changes_of_the_rate_stir_more_than_slow_ones() -> None:
    steps = np.arange(0, 1001)
    sudden = stirred(plan_of(Schedule.from_points(steps, np.where(steps <= 500, 1.0, 0.0))), 0.02)
    slow = stirred(
        plan_of(Schedule.from_points(steps, np.interp(steps, [0, 300, 700, 1000], [1, 1, 0, 0]))), 0.02
    )
    assert sudden[-1] == pytest.approx(1.0, abs=0.02)
    assert slow[-1] == pytest.approx(2 * 0.02 / 0.4, rel=0.15)  # the integral of 2 r^2 / m with r = m / 0.4
    assert min(np.diff(sudden).min(), np.diff(slow).min()) > -1e-12
    assert not stirred(plan_of(PLANS["constant"]), 0.02).any()


def test_falls_at_epoch_borders_are_equal_while_the_rate_is_and_grow_by_half_at_most() -> None:
    plan = plan_of(Schedule.constant(1.0, 4000))
    equal, growing = EpochBorders(1000, ((1.0, 0.0), (1.4, 0.0)))(plan).features
    middles = [int(np.argmin(np.abs(plan.steps - at))) for at in (500, 1500, 2500, 3500)]
    np.testing.assert_allclose(equal[middles], [3.0, 2.0, 1.0, 0.0])
    np.testing.assert_allclose(-np.diff(growing[middles]), [1.0, 1.4, 1.5])


def test_falls_at_epoch_borders_shrink_as_the_square_root_of_the_area_of_the_epoch_that_ends() -> None:
    plan = plan_of(Schedule.linear(1.0, 4000))
    sudden, gradual = EpochBorders(1000, ((1.0, 0.0), (1.0, 1.0)))(plan).features
    middles = [int(np.argmin(np.abs(plan.steps - at))) for at in (500, 1500, 2500, 3500)]
    falls = np.sqrt(np.array([7.0, 5.0, 3.0, 1.0]) / 7.0)
    np.testing.assert_allclose(-np.diff(sudden[middles]), falls[:3], rtol=1e-3)
    ends = [int(np.argmin(np.abs(plan.steps - at))) for at in (1000, 2000, 3000, 4000)]
    np.testing.assert_allclose(-np.diff(gradual[ends]), falls[1:], atol=0.03)
    assert np.all(np.diff(gradual) <= 1e-12)


def test_a_first_epoch_without_a_rate_makes_no_later_fall_boundless() -> None:
    steps = np.arange(0, 4001)
    plan = plan_of(Schedule.from_points(steps, np.where(steps <= 1000, 0.0, 1.0)))
    assert EpochBorders(1000, ((1.0, 0.0), (1.0, 1.0)))(plan).features.max() <= 3.0 * 3.0


def test_a_run_that_reads_its_data_once_has_no_borders() -> None:
    for length in (None, 4000, 5000):
        assert len(EpochBorders(length, ((1.0, 0.0),))(plan_of(Schedule.linear(1.0, 4000)))) == 0
