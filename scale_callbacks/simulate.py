"""Simulated reward curves whose truth is known: what a rule is tested on before it meets a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SEED = 20260
MIX = {
    "exponential": 0.25,
    "sigmoid": 0.20,
    "two-stage": 0.20,
    "linear": 0.12,
    "power": 0.08,
    "collapse": 0.09,
    "flat": 0.06,
}
NOISE = (0.1, 1.2)  # sd of a step over the gain, log-uniform
CORRELATION = (0.0, 0.6)  # of neighbouring steps
LENGTH = (60, 5000)  # steps, log-uniform
SETTLED = 0.05  # share of the gain that a saturating curve has left
SATURATED_BY = 0.75  # at this share of the run


@dataclass(frozen=True)
class Simulated:
    """One simulated run.

    Attributes:
        name: "law/number".
        law: which of `MIX`.
        kind: "yes" (saturates), "no" (still rising, or flat) or "collapses", read off the truth.
        steps: 1 to the run's length.
        rewards: truth and noise.
        truth: the curve without noise, in the rewards' units.
    """

    name: str
    law: str
    kind: str
    steps: Floats
    rewards: Floats
    truth: Floats


def simulate(count: int, *, seed: int = SEED) -> list[Simulated]:
    """Draw reward curves in the proportions of `MIX`, the same ones for the same seed.

    Args:
        count: how many.
        seed: of the random numbers; a curve depends on the seed and its own number only.
    """
    return [_one(i, np.random.default_rng([seed, i])) for i in range(count)]


def _one(number: int, rng: np.random.Generator) -> Simulated:
    law = str(rng.choice(list(MIX), p=list(MIX.values())))
    length = round(_log_uniform(rng, *LENGTH))
    steps = np.arange(1.0, length + 1.0)
    shape = _SHAPES[law](steps / length, rng)
    shape = (shape - shape[0]) / (float(np.ptp(shape)) or 1.0)
    scale, start = _log_uniform(rng, 0.05, 20.0), rng.normal()
    truth = scale * (start + shape)
    noise = scale * _log_uniform(rng, *NOISE) * _autocorrelated(length, rng.uniform(*CORRELATION), rng)
    return Simulated(f"{law}/{number}", law, kind_of(shape), steps, truth + noise, truth)


def kind_of(shape: Floats) -> str:
    """Whether a curve without noise saturates, collapses, or does neither ("no")."""
    top, gain = int(shape.argmax()), float(shape.max() - shape[0])
    if gain <= 0.0:
        return "no"
    if shape[-1] < shape[top] - 0.1 * gain:
        return "collapses"
    left = shape[-1] - shape[min(int(SATURATED_BY * len(shape)), len(shape) - 1)]
    return "yes" if left <= SETTLED * gain else "no"


def _exponential(x: Floats, rng: np.random.Generator) -> Floats:
    delay = rng.uniform(0.0, 0.3) * (rng.random() < 0.5)
    return np.asarray(-np.expm1(-np.maximum(x - delay, 0.0) / _log_uniform(rng, 0.03, 0.8)))


def _sigmoid(x: Floats, rng: np.random.Generator) -> Floats:
    return np.asarray(1.0 / (1.0 + (_log_uniform(rng, 0.08, 0.9) / x) ** rng.uniform(1.5, 8.0)))


def _two_stages(x: Floats, rng: np.random.Generator) -> Floats:
    first = rng.uniform(0.03, 0.35)
    second, share = rng.uniform(first + 0.1, 0.95), rng.uniform(0.25, 0.75)
    widths = _log_uniform(rng, 0.01, 0.1), _log_uniform(rng, 0.01, 0.1)
    ramps = [1.0 / (1.0 + np.exp(-(x - m) / w)) for m, w in zip((first, second), widths, strict=True)]
    return np.asarray(share * ramps[0] + (1.0 - share) * ramps[1])


def _linear(x: Floats, rng: np.random.Generator) -> Floats:
    return x


def _power(x: Floats, rng: np.random.Generator) -> Floats:
    return np.asarray(1.0 - (1.0 + x / _log_uniform(rng, 0.01, 0.2)) ** -rng.uniform(0.2, 0.8))


def _collapse(x: Floats, rng: np.random.Generator) -> Floats:
    rise = -np.expm1(-x / _log_uniform(rng, 0.03, 0.3))
    middle, width = rng.uniform(0.3, 0.85), _log_uniform(rng, 0.01, 0.08)
    return np.asarray(rise - rng.uniform(0.4, 1.2) / (1.0 + np.exp(-(x - middle) / width)))


def _flat(x: Floats, rng: np.random.Generator) -> Floats:
    return np.zeros_like(x)


_SHAPES: dict[str, Callable[[Floats, np.random.Generator], Floats]] = {
    "exponential": _exponential,
    "sigmoid": _sigmoid,
    "two-stage": _two_stages,
    "linear": _linear,
    "power": _power,
    "collapse": _collapse,
    "flat": _flat,
}


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _autocorrelated(count: int, correlation: float, rng: np.random.Generator) -> Floats:
    """Noise of unit variance in which neighbours are correlated (AR(1))."""
    white = rng.normal(size=count)
    noise = np.empty(count)
    noise[0] = white[0]
    fresh = np.sqrt(1.0 - correlation**2)
    for i in range(1, count):
        noise[i] = correlation * noise[i - 1] + fresh * white[i]
    return noise
