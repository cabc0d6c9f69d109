import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scale_callbacks import Schedule
from scale_callbacks._sampling import BUDGET


def areas_step_by_step(schedule, decay=0.999):
    """The definitions of S1 and S2, one optimizer step at a time."""
    rate = [schedule.lr(t) for t in range(schedule.horizon + 1)]
    area = annealing = momentum = 0.0
    areas, annealings = [], []
    for t in range(1, schedule.horizon + 1):
        area += rate[t]
        momentum = decay * momentum + (rate[t - 1] - rate[t] if t > schedule.warmup else 0.0)
        annealing += momentum
        areas.append(area)
        annealings.append(annealing)
    return areas, annealings


def plans():
    """Piecewise-linear plans with warm-ups, jumps, restarts and ends at zero."""
    gaps = st.lists(st.integers(1, 60), min_size=1, max_size=8)
    rates = st.lists(st.floats(0, 10).map(lambda x: round(x, 3)), min_size=8, max_size=8)
    return st.tuples(gaps, rates, st.floats(0.01, 10), st.booleans()).map(_plan)


def _plan(parts):
    gaps, rates, positive, from_zero = parts
    steps = np.cumsum(gaps) - (gaps[0] if from_zero and len(gaps) > 1 else 0)
    return Schedule.from_points(steps, [*rates[: len(gaps) - 1], positive])


NAMED = {
    "constant": Schedule.constant(3e-4, 500, warmup=50),
    "constant without warm-up": Schedule.constant(1.0, 500),
    "linear": Schedule.linear(3e-4, 500, warmup=50, floor=3e-5),
    "cosine": Schedule.cosine(3e-4, 500, warmup=50, floor=3e-5),
    "wsd linear": Schedule.wsd(3e-4, 500, warmup=50, cooldown=100),
    "wsd 1-sqrt": Schedule.wsd(3e-4, 500, warmup=50, cooldown=100, shape="1-sqrt"),
    "wsd cosine": Schedule.wsd(3e-4, 500, warmup=50, cooldown=100, shape="cosine"),
    "wsd exponential": Schedule.wsd(3e-4, 500, cooldown=100, shape="exponential", floor=3e-5),
    "multi-step": Schedule.multi_step(1.0, 500, milestones=[200, 400], gamma=0.5, warmup=10),
}


@pytest.mark.parametrize("schedule", NAMED.values(), ids=NAMED.keys())
@pytest.mark.parametrize("decay", [0.0, 0.99, 0.999])
def test_areas_of_named_shapes_equal_sums_step_by_step(schedule, decay):
    steps = np.arange(1, schedule.horizon + 1)
    areas, annealings = areas_step_by_step(schedule, decay)
    np.testing.assert_allclose(schedule.area(steps), areas, rtol=1e-11)
    np.testing.assert_allclose(
        schedule.annealing_area(steps, decay), annealings, rtol=1e-9, atol=1e-12 * schedule.peak
    )


@given(plans(), st.sampled_from([0.0, 0.9, 0.99, 0.999]))
def test_areas_of_any_plan_equal_sums_step_by_step(schedule, decay):
    steps = np.arange(1, schedule.horizon + 1)
    areas, annealings = areas_step_by_step(schedule, decay)
    np.testing.assert_allclose(schedule.area(steps), areas, rtol=1e-9, atol=1e-9 * schedule.peak)
    np.testing.assert_allclose(
        schedule.annealing_area(steps, decay), annealings, rtol=1e-7, atol=1e-8 * schedule.peak
    )


def test_shapes_pass_through_the_points_that_define_them():
    cosine = Schedule.cosine(1.0, 1100, warmup=100, floor=0.2)
    assert [cosine.lr(t) for t in (0, 50, 100, 600, 1100)] == pytest.approx([0, 0.5, 1, 0.6, 0.2])
    sqrt = Schedule.wsd(1.0, 1000, cooldown=400, shape="1-sqrt")
    assert [sqrt.lr(t) for t in (1, 600, 700, 1000)] == pytest.approx([1, 1, 0.5, 0])
    exponential = Schedule.wsd(1.0, 1000, cooldown=400, shape="exponential", floor=0.01)
    assert [exponential.lr(t) for t in (600, 800, 1000)] == pytest.approx([1, 0.1, 0.01])
    steps = Schedule.multi_step(1.0, 1000, milestones=[300, 600])
    assert [steps.lr(t) for t in (300, 301, 600, 601, 1000)] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])


def test_a_log_that_starts_late_is_given_a_linear_warm_up_from_zero():
    schedule = Schedule.from_points([100, 200], [1.0, 1.0])
    assert schedule.lr(50) == 0.5
    assert schedule.warmup == 100
    assert schedule.area(100) == pytest.approx(sum(t / 100 for t in range(1, 101)))


def test_warm_up_is_not_annealing_and_a_later_rise_counts_against_it():
    assert Schedule.constant(1.0, 1000, warmup=300).annealing_area(1000) == 0
    down_and_up = Schedule.from_points([0, 100, 200, 300], [1.0, 1.0, 0.0, 1.0])
    assert down_and_up.annealing_area(200) > 0
    assert down_and_up.annealing_area(300, decay=0.0) == pytest.approx(0, abs=1e-9)


def test_scalars_give_floats_and_arrays_give_arrays():
    schedule = Schedule.constant(2.0, 10)
    for measure in (schedule.lr, schedule.area, schedule.annealing_area):
        assert type(measure(3)) is float
        assert measure([1, 2, 3]).shape == (3,)
        assert measure(np.array([])).shape == (0,)


def test_the_last_rate_is_held_after_the_horizon():
    schedule = Schedule.linear(1.0, 100, floor=0.5)
    assert schedule.lr(150) == 0.5
    assert schedule.area(150) == pytest.approx(schedule.area(100) + 25)


def test_one_point_is_a_plan():
    assert Schedule.from_points([100], [3e-4]).horizon == 100


def test_knots_between_steps_count_at_whole_steps_only():
    schedule = Schedule.from_points([0.5, 3.5, 10.0], [1.0, 2.0, 0.0])
    areas, _ = areas_step_by_step(schedule)
    assert schedule.horizon == 10
    assert schedule.lr(2) == pytest.approx(1.5)
    np.testing.assert_allclose(schedule.area(np.arange(1, 11)), areas)


def test_functions_of_short_plans_are_taken_step_by_step():
    schedule = Schedule.from_function(lambda t: 1.0 / t, 1000)
    assert schedule.area(1000) == pytest.approx(sum(1.0 / t for t in range(1, 1001)), rel=1e-12)


def test_the_cost_of_a_plan_does_not_grow_with_its_steps():
    calls = 0

    def rate(t):
        nonlocal calls
        calls += 1
        return 0.1 if t > 7_654_321 else 1.0

    schedule = Schedule.from_function(rate, 10_000_000)
    assert calls <= BUDGET
    assert schedule.lr([7_654_321, 7_654_322]).tolist() == [1.0, 0.1]
    assert schedule.area(10_000_000) == pytest.approx(7_654_321 + 0.1 * 2_345_679, rel=1e-9)


def test_sampled_curves_are_within_the_stated_tolerance():
    horizon = 3_000_000
    sampled = Schedule.from_function(lambda t: 0.5 + 0.5 * np.cos(np.pi * t / horizon), horizon)
    steps = np.linspace(1, horizon, 10_007).astype(int)
    assert np.abs(sampled.lr(steps) - (0.5 + 0.5 * np.cos(np.pi * steps / horizon))).max() < 2e-5


def test_plans_survive_plain_data_to_the_last_bit():
    schedule = Schedule.cosine(3e-4, 900, warmup=30, floor=1e-5)
    again = Schedule.from_dict(schedule.to_dict())
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert again != Schedule.cosine(3e-4, 901, warmup=30, floor=1e-5)
    assert repr(again) == repr(schedule)


def test_a_plan_cannot_be_changed_behind_our_back():
    steps, rates = np.array([0.0, 10.0]), np.array([1.0, 0.0])
    schedule = Schedule.from_points(steps, rates)
    rates[0] = 7.0
    assert schedule.lr(0) == 1.0
    with pytest.raises(ValueError, match="read-only"):
        schedule.rates[0] = 7.0


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Schedule.from_points([1, 2], [1.0, -0.5]), "-0.5 at step 2"),
        (lambda: Schedule.from_points([1, 2], [1.0, float("nan")]), "nan at step 2"),
        (lambda: Schedule.from_points([1, 2, 2], [1, 1, 1]), "2 follows 2"),
        (lambda: Schedule.from_points([1, float("inf")], [1, 1]), "inf"),
        (lambda: Schedule.from_points([-5, 2], [1, 1]), "-5"),
        (lambda: Schedule.from_points([], []), "length"),
        (lambda: Schedule.from_points([1, 2], [1]), "length"),
        (lambda: Schedule.from_points([1, 2], [0, 0]), "no positive"),
        (lambda: Schedule.from_function(lambda t: 1.0, 0), "horizon=0"),
        (lambda: Schedule.from_function(lambda t: float("nan"), 10), "nan at step 1"),
        (lambda: Schedule.constant(1.0, 10.5), "horizon=10.5"),
        (lambda: Schedule.constant(0.0, 10), "rate=0.0"),
        (lambda: Schedule.constant(1.0, 10, warmup=10), "warmup=10"),
        (lambda: Schedule.cosine(1.0, 10, floor=2.0), "floor=2.0"),
        (lambda: Schedule.wsd(1.0, 10, cooldown=11), "cooldown=11"),
        (lambda: Schedule.wsd(1.0, 10, cooldown=5, shape="steep"), "steep"),
        (lambda: Schedule.wsd(1.0, 10, cooldown=5, shape="exponential"), "floor=0.0"),
        (lambda: Schedule.multi_step(1.0, 10, milestones=[7, 3]), r"\[7, 3\]"),
        (lambda: Schedule.multi_step(1.0, 10, milestones=[7], gamma=-1), "gamma=-1"),
        (lambda: Schedule.constant(1.0, 10).annealing_area(5, decay=1.0), "decay=1.0"),
        (lambda: Schedule.constant(1.0, 10).lr(float("nan")), "finite"),
    ],
)
def test_bad_plans_are_refused_with_the_value_named(build, named):
    with pytest.raises(ValueError, match=named):
        build()
