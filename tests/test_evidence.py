import numpy as np
import pytest

from scale_callbacks.curve import Bins, Curve
from scale_callbacks.evidence import quieter, usable
from scale_callbacks.laws.base import plan_of
from scale_callbacks.laws.power import PowerOfArea
from scale_callbacks.schedule import Schedule
from scale_callbacks.tables import Evidence, Features, Tables

SKIP = (0.03, 0.3, 1.1)


def curve_of(count: int, noise: float, horizon: int = 10_000, until: float = 1.0) -> Curve:
    """Losses seen every so often of a run that falls steeply at first."""
    curve = Curve(horizon)
    steps = np.linspace(horizon / count, horizon, count)[: int(count * until)]
    losses = 3.0 + 8.0 * (1.0 + 100.0 * steps / horizon) ** -0.8
    curve.observe(steps, losses * (1.0 + noise * np.random.default_rng(0).standard_normal(len(steps))))
    return curve


@pytest.mark.parametrize(("count", "until"), [(50, 0.2), (50, 1.0), (200, 1.0)])
def test_few_losses_are_as_noisy_as_their_bins_not_as_the_first_steps_were_steep(
    count: int, until: float
) -> None:
    curve = curve_of(count, noise=0.0005, until=until)
    used = usable(curve.bins(), 10_000, 0, SKIP, curve.noise)
    noise = quieter(used, curve.noise) / used.robust[-1]
    assert 0.0002 < noise < 0.0015
    assert noise <= curve.noise / used.robust[-1]


def test_the_noise_of_a_few_losses_is_found_on_average() -> None:
    steps = np.arange(400.0, 2001.0, 200.0)
    level = 3.0 + 8.0 * (1.0 + steps / 100.0) ** -0.5
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        losses = level + 0.01 * rng.standard_normal(len(steps))
        bins = Bins(steps, losses, losses, np.zeros_like(steps), np.ones_like(steps))
        found.append(quieter(bins, 1.0))
    assert 0.01 < np.median(found) < 0.02  # six differences: held rather too large than too small


def test_many_losses_keep_the_noise_of_their_stream() -> None:
    curve = curve_of(2000, noise=0.02)
    assert quieter(usable(curve.bins(), 10_000, 0, SKIP, curve.noise), curve.noise) == curve.noise


@pytest.mark.parametrize("start", [0.0, 1e16])
def test_losses_from_step_0_on_and_steps_too_large_to_be_told_apart_have_a_noise(start: float) -> None:
    curve = Curve(10)
    curve.observe(start + np.arange(0.0, 4.5, 0.5) * max(start * 1e-15, 1.0), 3.0 - 0.1 * np.arange(9))
    assert 0.0 <= quieter(curve.bins(), curve.noise) <= curve.noise


def test_a_handful_of_bins_tells_no_noise() -> None:
    curve = curve_of(50, noise=0.0, until=0.1)
    used = usable(curve.bins(), 10_000, 0, SKIP, curve.noise)
    assert len(used) < 5
    assert quieter(used, 0.3) == 0.3


@pytest.mark.parametrize(("count", "noise", "first"), [(1000, 0.0, 3000), (1000, 0.1, 1500), (20, 0.0, 450)])
def test_early_bins_are_left_out_where_they_are_not_needed(count: int, noise: float, first: float) -> None:
    used = usable(curve_of(count, 0.0).bins(), 10_000, 0, SKIP, 3.2 * noise)
    assert first < used.steps[0] < 1.1 * first + 50


@pytest.mark.parametrize(
    ("spacing", "mean"), [(300.0, 10_000), (60.0, 9_970), (1.0, 9_950.5), (100.0, 10_000)]
)
def test_what_is_forecast_is_the_mean_of_the_losses_that_fall_in_the_last_hundredth(spacing, mean) -> None:
    plan = plan_of(Schedule.constant(1e-3, 10_000))
    decay = PowerOfArea((-1.0,), (0.0,))(plan).features  # a straight line
    bins = np.arange(1000.0, 5001.0, 1000.0)
    evidence = Evidence(bins, np.ones(5), np.ones(5), 0.0, spacing)
    none = np.zeros(len(plan.steps))
    tables = Tables.of(Features(plan, decay, 0.0 * decay, none, none, 1.0), evidence, np.zeros(0))
    assert tables.decay_at[0, -1] == pytest.approx(1.0 - mean / 10_000, abs=1e-9)
