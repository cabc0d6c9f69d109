import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scale_callbacks.mixture import normal_cdf, normal_quantile, quantiles

LEVELS = (0.001, 0.05, 0.5, 0.95, 0.999)


def test_the_normal_distribution_is_exact_to_six_digits() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    z = np.linspace(-8, 8, 200)
    np.testing.assert_allclose(normal_cdf(z), scipy_stats.norm.cdf(z), atol=2e-7)


@given(st.integers(0, 1000), st.integers(1, 12), st.floats(1e-9, 1e3))
def test_quantiles_of_a_mixture_cut_off_what_they_say(seed: int, members: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(members))
    mean, sd = rng.normal(0.0, scale, members), scale * np.exp(rng.normal(0.0, 1.5, members))
    edges = quantiles(weights, mean, sd, LEVELS)
    below = normal_cdf((edges[:, None] - mean) / sd) @ weights
    np.testing.assert_allclose(below, LEVELS, atol=1e-3)
    assert np.all(np.diff(edges) > 0)


@pytest.mark.parametrize(("probability", "expected"), [(0.5, 0.0), (0.95, 1.6448536), (0.005, -2.5758293)])
def test_quantiles_of_the_normal_distribution(probability: float, expected: float) -> None:
    assert normal_quantile(probability) == pytest.approx(expected, abs=1e-5)
