"""Measures: what is watched need not be a loss, but the laws are those of one: it is turned into one."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.curve import Bins

Floats = NDArray[np.float64]

# Compiled when a name is first asked for: `import scale_callbacks` need not wait for it.
_LOSSES = r"loss|perplexity|error|(?<![a-z])(ppl|nll|wer|cer|mse|mae|rmse|bpb)(?![a-z])"
_PERPLEXITIES = r"perplexity|(?<![a-z])ppl(?![a-z])"
_SCORES = (
    r"accurac|precision|recall|bleu|rouge|auroc|jaccard|"
    r"(?<![a-z])((acc|top|auc|ap|map|iou|miou|dice|psnr|ssim|meteor|exact_match)[0-9]*|f[0-9]+)(?![a-z])"
)
_BEST = (1.0, 100.0)  # what a score that has stayed between 0 and it can reach
_LEAST = 1e-300
_CLEAR, _MUCH = 3.0, 0.02  # standard deviations, and share of the level, by which a curve must move


class Measure(StrEnum):
    """What kind of number is watched."""

    LOSS = "loss"  # falls; the mean of the last 1% of the plan is forecast
    PERPLEXITY = "perplexity"  # the exponential of a loss
    SCORE = "score"  # rises: an accuracy, F1, BLEU


def measure_of(name: str) -> Measure:
    """The measure that the name of a metric tells: "val_acc" a score, "eval_perplexity" a perplexity.

    >>> measure_of("train_loss"), measure_of("eval/accuracy")
    (<Measure.LOSS: 'loss'>, <Measure.SCORE: 'score'>)
    """
    lower = name.lower()
    if re.search(_PERPLEXITIES, lower):
        return Measure.PERPLEXITY
    return Measure.SCORE if re.search(_SCORES, lower) and not re.search(_LOSSES, lower) else Measure.LOSS


def as_measure(measure: Measure | str) -> Measure:
    """The measure of that name; ValueError with those there are for another."""
    if measure not in tuple(Measure):
        raise ValueError(f"measure={measure!r} must be 'loss', 'perplexity' or 'score'")
    return Measure(measure)


@dataclass(frozen=True)
class AsLoss:
    """Turns what is watched into a loss, and a forecast of that back.

    The loss of a perplexity is its log. That of a score is what it lacks of 1, or of 100, where it has stayed
    between that and 0 (the error rate of an accuracy), else the score with its sign changed.

    Attributes:
        measure: what is watched.
        best: what a score is told by its distance from.
    """

    measure: Measure = Measure.LOSS
    best: float = 0.0

    @classmethod
    def of(cls, measure: Measure, bins: Bins) -> Self:
        """See from the values so far how far a score can rise."""
        if measure is not Measure.SCORE or not len(bins) or bins.mean.min() < 0.0:
            return cls(measure)
        top = float(bins.mean.max())
        return cls(measure, next((best for best in _BEST if top <= best), 0.0))

    def inward(self, values: Floats) -> Floats:
        """From the watched values to losses."""
        if self.measure is Measure.PERPLEXITY:
            return np.asarray(np.log(np.maximum(values, _LEAST)), dtype=np.float64)
        return self.best - values if self.measure is Measure.SCORE else values

    def outward(self, losses: Floats) -> Floats:
        """Back to the values that are watched."""
        if self.measure is Measure.PERPLEXITY:
            return np.asarray(np.exp(np.minimum(losses, 690.0)), dtype=np.float64)
        return self.best - losses if self.measure is Measure.SCORE else losses

    def bins(self, bins: Bins) -> Bins:
        """Bins of the loss: the mean of each is turned as a value is."""
        if self.measure is Measure.LOSS:
            return bins
        return replace(bins, mean=self.inward(bins.mean), robust=self.inward(bins.robust))

    def noise(self, noise: float, level: float) -> float:
        """Standard deviation of one loss, given that of one watched value and their level."""
        return noise / max(abs(level), _LEAST) if self.measure is Measure.PERPLEXITY else noise


PLAIN = AsLoss()


def remedy(measure: Measure) -> str:
    """What to do about a metric that goes the wrong way."""
    if measure is Measure.SCORE:
        return "a score rises: log what falls with 'loss' in its name, or give LossForecaster measure='loss'"
    return "a loss falls: log what rises by a name like val_acc, or give LossForecaster measure='score'"


def contrary(measure: Measure, bins: Bins, noise: float) -> bool:
    """Tell a curve that goes the wrong way: a loss clearly higher half-way and of late than at first.

    One that has only broken away of late is another matter: see `deviation`.
    """
    part = max(len(bins) // 10, 3)
    if len(bins) < 3 * part:
        return False
    half = (len(bins) - part) // 2
    tenths = [slice(start, start + part) for start in (0, half, len(bins) - part)]
    first, mid, last = (sorted(bins.robust[tenth].tolist())[part // 2] for tenth in tenths)
    worse = first - max(mid, last) if measure is Measure.SCORE else min(mid, last) - first
    count = min(float(bins.count[tenth].sum()) for tenth in tenths)
    return bool(worse > max(_CLEAR * 1.8 * noise * count**-0.5, _MUCH * abs(first)))
