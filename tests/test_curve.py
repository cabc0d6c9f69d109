import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scale_callbacks.curve import Curve


def noisy(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    steps = np.arange(1.0, count + 1)
    return steps, 2.0 + 5.0 * steps**-0.4 + 0.05 * np.random.default_rng(seed).standard_normal(count)


def fed(*batches: tuple[object, object], horizon: int = 1000, **settings: object) -> Curve:
    curve = Curve(horizon, **settings)  # type: ignore[arg-type]
    for steps, values in batches:
        curve.observe(steps, values)  # type: ignore[arg-type]
    return curve


@given(st.lists(st.integers(0, 600), max_size=6))
def test_splitting_a_stream_over_calls_changes_nothing(cuts: list[int]) -> None:
    steps, values = noisy(600)
    edges = [0, *sorted(cuts), 600]
    parts = [(steps[a:b], values[a:b]) for a, b in pairwise(edges)]
    assert fed(*parts).state_dict() == fed((steps, values)).state_dict()


def test_scalars_and_arrays_agree_to_the_last_bit() -> None:
    steps, values = noisy(300)
    one_by_one = fed(*zip(steps.tolist(), values.tolist(), strict=True))
    assert one_by_one.state_dict() == fed((steps, values)).state_dict()


@pytest.mark.parametrize("robust", [True, False])
@given(st.integers(0, 2**32), st.integers(0, 3000), st.sampled_from([1e-3, 1.0, 30.0]))
def test_a_batch_is_folded_in_as_its_values_one_by_one(
    robust: bool, seed: int, start: int, stride: float
) -> None:
    draw = np.random.default_rng(seed)
    steps = start + stride * np.cumsum(draw.integers(1, 4, 1500))  # past the horizon at the longer strides
    values = 2.0 + draw.standard_t(1.2, 1500) + 50.0 * (draw.random(1500) > 0.97)
    values[draw.random(1500) > 0.99] = np.nan
    values[700:720] += 1e6
    before = noisy(200)
    batch, single = fed(before, robust=robust), fed(before, robust=robust)
    batch.observe(steps, values)
    for step, value in zip(steps.tolist(), values.tolist(), strict=True):
        single.observe(step, value)
    assert batch.state_dict() == single.state_dict()


def test_bins_are_bounded_and_hold_every_observation() -> None:
    steps, values = noisy(20_000)
    bins = fed((steps, values), horizon=20_000, bins=64).bins()
    assert len(bins) <= 64
    assert bins.count.sum() == 20_000
    assert bins.mean @ bins.count == pytest.approx(values.sum())
    assert np.all(np.diff(bins.steps) > 0)


def test_spread_is_the_standard_deviation_within_a_bin() -> None:
    bins = fed(([990, 991, 992], [1.0, 2.0, 6.0]), bins=8).bins()
    assert bins.spread[-1] == pytest.approx(np.std([1.0, 2.0, 6.0]))


def test_nonfinite_values_are_counted_and_left_out() -> None:
    curve = fed(([1, 2, 3, 4], [1.0, math.nan, math.inf, 2.0]), (5, -math.inf), (6, 1e200))
    assert (curve.n, curve.nonfinite, curve.last_step) == (2, 4, 4)


def test_observing_nothing_is_fine() -> None:
    curve = fed(([], []))
    assert (curve.n, curve.last_step, len(curve.bins())) == (0, None, 0)


def test_step_zero_is_kept() -> None:
    assert fed((0, 5.0), ([1, 2], [4.0, 3.0])).first_step == 0


@pytest.mark.parametrize("cut", [1, 2, 100, 333, 599, 600])
def test_a_rewind_replaces_what_came_after_exactly(cut: int) -> None:
    steps, values = noisy(600)
    rewound = fed((steps, values), (steps[cut - 1 :], values[cut - 1 :] + 1.0)).state_dict()
    straight = fed(
        (steps[: cut - 1], values[: cut - 1]), (steps[cut - 1 :], values[cut - 1 :] + 1.0)
    ).state_dict()
    assert rewound.pop("rewinds") == 1
    assert straight.pop("rewinds") == 0
    assert rewound == straight


def test_a_rewind_beyond_the_kept_observations_loses_at_most_one_bin() -> None:
    steps, values = noisy(20_000)
    rewound = fed((steps, values), (5000, 1.0), horizon=20_000).bins()
    straight = fed((steps[:4999], values[:4999]), (5000, 1.0), horizon=20_000).bins()
    np.testing.assert_array_equal(rewound.mean[:-1], straight.mean[: len(rewound) - 1])
    assert len(straight) - len(rewound) <= 1


def test_steps_past_the_horizon_are_kept_in_as_many_bins() -> None:
    steps, values = noisy(5000)
    curve = fed((steps, values), horizon=100, bins=64)
    assert curve.last_step == 5000
    assert len(curve.bins()) <= 64
    assert curve.bins().count.sum() == 5000


def test_a_rewind_works_past_the_horizon() -> None:
    steps, values = noisy(900)
    curve = fed((steps, values), (850, 2.5), horizon=500)
    assert (curve.last_step, curve.n, curve.rewinds) == (850, 850, 1)


def test_an_isolated_spike_is_pulled_in_but_the_plain_mean_keeps_it() -> None:
    steps, values = noisy(400)
    clean = fed((steps, values)).bins()
    values = values.copy()
    values[300] = 50.0
    spiked = fed((steps, values)).bins()
    hit = int(np.argmax(spiked.mean - clean.mean))
    assert spiked.mean[hit] - clean.mean[hit] > 10.0
    assert spiked.robust[hit] - clean.robust[hit] < 0.2


def test_a_jump_that_stays_is_followed() -> None:
    values = np.concatenate((np.full(100, 2.0), np.full(100, 1.0)))
    values += 0.001 * np.random.default_rng(0).standard_normal(200)
    bins = fed((np.arange(1, 201), values), horizon=200).bins()
    np.testing.assert_allclose(bins.robust[bins.steps > 105], 1.0, atol=0.01)


def test_noise_is_measured_whatever_the_trend() -> None:
    rng = np.random.default_rng(1)
    steps = np.arange(1, 4001)
    assert fed((steps, 9.0 - 0.002 * steps + 0.05 * rng.standard_normal(4000))).noise == pytest.approx(
        0.05, rel=0.3
    )


@given(st.floats(1e-12, 1e12))
def test_the_summary_scales_with_the_values(scale: float) -> None:
    steps, values = noisy(120)
    plain, scaled = fed((steps, values)).bins(), fed((steps, values * scale)).bins()
    np.testing.assert_allclose(scaled.robust, plain.robust * scale, rtol=1e-9)


def test_a_restored_curve_goes_on_as_the_saved_one() -> None:
    steps, values = noisy(800)
    saved = fed((steps[:500], values[:500]))
    restored = Curve(1)
    restored.load_state_dict(json.loads(json.dumps(saved.state_dict(), allow_nan=False)))
    for curve in (saved, restored):
        curve.observe(steps[500:], values[500:])
        curve.observe(700, 2.0)
    assert restored.state_dict() == saved.state_dict()


def test_torch_scalars_are_taken() -> None:
    torch = pytest.importorskip("torch")
    curve = fed((torch.tensor(1), torch.tensor(2.5)), (np.int64(2), np.float32(2.0)))
    assert curve.bins().mean.tolist() == [2.5, 2.0]


@pytest.mark.parametrize(
    ("steps", "values", "error", "words"),
    [
        ([2, 1], [1.0, 1.0], ValueError, "1 after 2"),
        ([1, 1], [1.0, 1.0], ValueError, "increase"),
        ([1, 2], [1.0], ValueError, "2 and 1"),
        (-1, 1.0, ValueError, "-1"),
        (math.nan, 1.0, ValueError, "nan"),
        (math.inf, 1.0, ValueError, "inf"),
        (1, "0.5", TypeError, "'0.5'"),
        (1, None, TypeError, "None"),
        ([1, 2], ["a", "b"], TypeError, "'a'"),
        ([[1, 2]], [[1.0, 2.0]], TypeError, "steps"),
    ],
)
def test_bad_input_is_refused_naming_the_value(
    steps: object, values: object, error: type[Exception], words: str
) -> None:
    curve = Curve(10)
    with pytest.raises(error, match=words):
        curve.observe(steps, values)  # type: ignore[arg-type]
    assert curve.n == 0


@pytest.mark.parametrize(("horizon", "bins"), [(0, 64), (-5, 64), (10, 7), (10, 2)])
def test_a_curve_without_room_is_refused(horizon: int, bins: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        Curve(horizon, bins=bins)


def test_mean_after_a_step_is_exact_near_the_end_and_by_bins_further_back() -> None:
    steps, values = np.arange(1, 5001), np.random.default_rng(0).normal(2.0, 0.1, 5000)
    curve = Curve(5000)
    assert curve.mean_after(0) is None
    curve.observe(steps, values)
    assert curve.mean_after(4950) == pytest.approx(values[4950:].mean(), rel=1e-12)
    assert curve.mean_after(1000) == pytest.approx(values[1000:].mean(), rel=1e-3)
    assert curve.mean_after(5000) is None


@pytest.mark.parametrize("count", [5, 200])
@pytest.mark.parametrize(
    ("at", "step", "told"),
    [
        (0, -1.0, "not negative, got -1.0"),
        (3, float("nan"), "finite and not negative, got nan"),
        (3, float("inf"), "finite and not negative, got inf"),
        (-1, float("inf"), "finite and not negative, got inf"),
        (3, 2.0, "got 2 after 3"),
        (3, 3.0, "got 3 after 3"),
    ],
)
def test_steps_that_are_none_are_refused_in_short_and_long_calls(count, at, step, told):
    steps = [float(i) for i in range(1, count + 1)]
    steps[at] = step
    curve = Curve(1000)
    with pytest.raises(ValueError, match=re.escape(told)):
        curve.observe(steps, [1.0] * count)
    assert curve.n == 0
