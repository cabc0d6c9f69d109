"""Calibration: interval widths set on finished runs, and how forecasts are scored against the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.prior import Prior

Floats = NDArray[np.float64]

SMALL = "small"  # how sources of short runs begin
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
_EARLY, _LEAST = 0.1, (0.8, 0.6)  # to a tenth of the plan, where least is known, intervals are narrowed less
_EARLY_PART, _LATE_PART = (0.1, 0.2, 0.3), (0.5, 0.7, 0.9)


class Told(NamedTuple):
    """One forecast against the truth, all over the true final loss.

    `noise` is what the half-widths `below` and `above` would be were only the noise of single losses unknown;
    it is left as it is, the rest is calibrated.
    """

    source: str
    run: str
    language_model: bool
    share: float
    error: float
    below: float
    above: float
    to_come: float
    noise: float = 0.0


def log_score(rows: Sequence[Told]) -> Floats:
    """Negative log density of each truth, for a Student t (4 degrees) with the forecast's own two halves."""
    _, _, _, _, error, below, above, *_ = (np.array(column) for column in zip(*rows, strict=True))
    half = np.where(error > 0.0, below, above) / 1.645 + 5e-4
    width = (below + above) / 3.29 + 5e-4
    return np.asarray(np.log(width) + 2.5 * np.log1p((error / half) ** 2 / 4.0), dtype=np.float64)


Scores = dict[str, tuple[float, float]]


def by_source(rows: Sequence[Told]) -> Scores:
    """Mean score of each source and its weight."""
    scores, sources = log_score(rows), np.array([row.source for row in rows])
    return {s: (float(scores[sources == s].mean()), math.sqrt((sources == s).sum())) for s in set(sources)}


def gain(before: Scores, after: Scores) -> tuple[float, float]:
    """Weighted gain of score over sources, and its standard error."""
    gains = np.array([before[s][0] - after[s][0] for s in before])
    weights = np.array([before[s][1] for s in before])
    mean = float(gains @ weights / weights.sum())
    return mean, float(np.sqrt(np.sum((weights * (gains - mean)) ** 2)) / weights.sum())


def calibrated(prior: Prior, rows: Sequence[Told], level: float = 0.9, shrink: float = 0.85) -> Prior:
    """The prior with interval widths that hold the truths of these rows at the level they say.

    By share of the plan seen, neighbouring shares counting half, and apart for plans whose rate still falls
    by less and by more than a third of its peak; then two factors for all short runs, up to 30% seen and
    from half-way on. Runs that are no language models have no say: the kind they are like widens theirs. Runs
    of one source share the weight of the square root of their number. Each factor is a quantile of error over
    half-width, drawn towards 1; to a tenth of the plan, where least is known, none narrows by much.

    Args:
        prior: what the rows were forecast with.
        rows: forecasts of runs that the prior may see.
        level: of their intervals.
        shrink: power that factors are taken to.
    """
    long = [row for row in rows if row.language_model and not row.source.startswith(SMALL)]
    table = [
        (share, *(_factor(long, share, open_, level) ** shrink for open_ in (False, True)))
        for share in SHARES
    ]
    prior = prior.with_(calibration=tuple(table))
    short = [row for row in rows if row.source.startswith(SMALL)]
    if len(short) < 8:
        return prior
    factors = []
    for part in (_EARLY_PART, _LATE_PART):
        near = [row for row in short if row.share in part]
        excess = _ratios(near) / [prior.widening(row.share, row.to_come, {}) for row in near]
        factors.append(float(np.clip(_quantile(excess, _weights(near), level), 0.6, 2.5) ** shrink))
    return _widen_kind(prior, "short", (factors[0], factors[1]))


def _widen_kind(prior: Prior, name: str, factors: tuple[float, float]) -> Prior:
    """The prior with a kind's widths multiplied, early and late."""
    regimes = [
        replace(r, widening=(r.widening[0] * factors[0], r.widening[1] * factors[1])) if r.name == name else r
        for r in prior.regimes
    ]
    return prior.with_(regimes=tuple(regimes))


def fine_calibrated(prior: Prior, rows: Sequence[Told], level: float = 0.9) -> Prior:
    """The prior with the fine-tuning kind's widths set on forecasts of fine-tuning runs.

    Args:
        prior: what the rows were forecast with.
        rows: forecasts of fine-tuning runs that the prior may see.
        level: of their intervals.
    """
    factors = []
    for part in ((0.1, 0.2, 0.3, 0.5), (0.7, 0.9)):
        near = [row for row in rows if row.share in part]
        factors.append(float(np.clip(_quantile(_ratios(near), _weights(near), level), 0.4, 2.5)))
    return _widen_kind(prior, "finetuning", (factors[0], factors[1]))


def widened(rows: Sequence[Told], prior: Prior, without: str) -> list[Told]:
    """The rows of all sources but one, with the widths that these themselves call for.

    Args:
        rows: forecasts under a prior whose calibration is 1 throughout.
        prior: it, or one with the same calibration.
        without: source to leave out, or "".
    """
    kept = [row for row in rows if row.source != without]
    return _multiplied(kept, calibrated(prior, kept))


def rewidened(rows: Sequence[Told], prior: Prior) -> list[Told]:
    """The rows with the widths that the other sources call for; arguments as of `widened`."""
    out = []
    for source in sorted({row.source for row in rows}):
        honest = calibrated(prior, [row for row in rows if row.source != source])
        out += _multiplied([row for row in rows if row.source == source], honest)
    return out


def _multiplied(rows: Sequence[Told], prior: Prior) -> list[Told]:
    """Rows of calibration 1 with the widths of a prior, short runs taken to be known as such."""
    out = []
    for row in rows:
        factor = prior.widening(row.share, row.to_come, {"short": float(row.source.startswith(SMALL))})
        below, above = (_multiple(half, factor, row.noise) for half in (row.below, row.above))
        out.append(row._replace(below=below, above=above))
    return out


def _factor(rows: Sequence[Told], share: float, open_: bool, level: float) -> float:
    """What the half-widths near a share must be multiplied with to hold their truths."""
    place = SHARES.index(share)
    near = [
        row for row in rows if abs(SHARES.index(row.share) - place) <= 1 and (row.to_come > 0.35) == open_
    ]
    if len(near) < 8:
        return 1.0
    weights = _weights(near) * [1.0 if row.share == share else 0.5 for row in near]
    least = _LEAST[0] if share <= _EARLY else _LEAST[1]
    return float(np.clip(_quantile(_ratios(near), weights, level), least, 2.5))


def _ratios(rows: Sequence[Told]) -> Floats:
    """What each half-width, less its noise, must be multiplied with to just hold its truth."""
    _, _, _, _, error, below, above, _, noise = (np.array(column) for column in zip(*rows, strict=True))
    half = np.where(error > 0.0, below, above)
    squares = np.maximum(error**2 - noise**2, 0.0) / np.maximum(half**2 - noise**2, 1e-12)
    return np.asarray(np.sqrt(squares), dtype=np.float64)


def _multiple(half: float, factor: float, noise: float) -> float:
    """A half-width with what is not noise in it multiplied."""
    return math.sqrt(factor**2 * max(half**2 - noise**2, 0.0) + noise**2)


def _weights(rows: Sequence[Told]) -> Floats:
    sources = np.array([row.source for row in rows])
    return np.array([(sources == source).sum() ** -0.5 for source in sources])


def _quantile(values: Floats, weights: Floats, level: float) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, level)), len(order) - 1)])


def table(rows: Sequence[Told]) -> str:
    """Median and 90th percentile of |error|, bias, coverage and width by share, in percent."""
    lines = []
    for share in SHARES:
        here = [row for row in rows if row.share == share]
        if here:
            errors = 100.0 * np.array([row.error for row in here])
            held = [row.error <= row.below and -row.error <= row.above for row in here]
            width = 100.0 * np.median([row.below + row.above for row in here])
            lines.append(
                f"  {share:.0%}: median {np.median(np.abs(errors)):.2f}"
                f" p90 {np.quantile(np.abs(errors), 0.9):.2f}"
                f" bias {np.median(errors):+.2f} coverage {np.mean(held):.2f} width {width:.1f} n {len(here)}"
            )
    return "\n".join(lines)
