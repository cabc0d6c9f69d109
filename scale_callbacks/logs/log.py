"""Log: one metric of a finished or running training, as it was logged, in order and without repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Series = tuple[Floats, Floats]

RESTARTS = 1000  # more steps back than these are no restarts, but a shuffled file
FAR = 10.0  # times the length of a run beyond which its last few steps belong to another unit
LAST = 2.0**53  # a step beyond is no whole number any more
JUMP, SOME = 1000.0, 20  # the same of many steps: so much further after so many


class Source(Protocol):
    """A file or a run that metrics are read from.

    Attributes:
        label: what to call it in messages.
        names: the metrics it has, in its own order.
        planned: optimizer steps of the whole run, where the source knows.
        ended: whether the run is over, where the source knows.
        notes: what was left out or guessed, and how often.
    """

    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def names(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def planned(self) -> int | None: ...  # noqa: D102
    @property
    def ended(self) -> bool | None: ...  # noqa: D102
    @property
    def notes(self) -> Counter[str]: ...  # noqa: D102
    def read(self, names: Sequence[str]) -> dict[str, Series]:
        """Steps and values of metrics, as they were logged."""
        ...

    def is_mean(self, name: str) -> bool:
        """Whether a value is the mean over all steps since the one before."""
        ...


@dataclass(frozen=True)
class Log:
    """One metric of a run, ready to be replayed.

    Attributes:
        label: what the source is called.
        name: the metric.
        steps: optimizer steps, strictly increasing, 0 or more.
        values: the metric there; may hold NaN.
        rates: steps and learning rates, where they were logged.
        extra: further metrics at the same steps, NaN where there is none.
        is_mean: the values are means over the steps since the one before.
        planned: optimizer steps of the whole run, where the source knows.
        ended: whether the run is over, where the source knows.
        steps_per_epoch: optimizer steps of an epoch, where epochs were logged.
        notes: what was left out or guessed, and how often.
    """

    label: str
    name: str
    steps: Floats
    values: Floats
    rates: Series | None = None
    extra: Mapping[str, Floats] = field(default_factory=dict)
    is_mean: bool = False
    planned: int | None = None
    ended: bool | None = None
    steps_per_epoch: float | None = None
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def spans(self) -> Floats:
        """How many steps each value is the mean of."""
        if not self.is_mean:
            return np.ones(len(self.steps))
        return np.maximum(np.diff(self.steps, prepend=0.0), 1.0)


def tidy(steps: Floats, values: Floats, name: str, notes: Counter[str]) -> Series:
    """Bring a metric in order, and count what had to be left out.

    A restart from a checkpoint (steps go back, then on beyond where they were) replaces what it repeats. Of
    other repeated steps the last value counts.

    Raises:
        ValueError: no usable step, or steps that are no optimizer steps.
    """
    usable = (steps >= 0.0) & (steps <= LAST)  # false for NaN too
    _count(notes, f"{name}: step missing, negative or too large, left out", len(steps) - int(usable.sum()))
    steps, values = steps[usable], values[usable]
    if len(steps) == 0:
        raise ValueError(f"{name} has no value with a step")
    steps, values = _whole(steps, values, name, notes)
    if len(steps) > 1 and np.all(steps == steps[0]):
        _count(notes, f"{name}: every step is {steps[0]:g}, numbered in the order of logging", 1)
        steps = np.arange(1.0, len(steps) + 1.0)
    if np.any(np.diff(steps) <= 0.0):
        steps, values = _in_order(steps, values, name, notes)
    return _of_one_unit(steps, values, name, notes)


def aligned(at: Floats, series: Series) -> Floats:
    """The values of another metric at given steps, NaN where it has none."""
    steps, values = series
    index = np.clip(np.searchsorted(steps, at), 0, len(steps) - 1)
    return np.where(steps[index] == at, values[index], np.nan)


def epoch_length(series: Series) -> float | None:
    """Optimizer steps of an epoch, from logged epochs: shares that grow, or whole numbers."""
    known = np.isfinite(series[0]) & np.isfinite(series[1]) & (series[0] >= 0.0) & (series[1] >= 0.0)
    steps, epochs = series[0][known], series[1][known]
    if len(steps) < 2 or epochs[-1] <= 0.0 or np.any(np.diff(epochs) < 0.0):
        return None
    if np.any(epochs != np.floor(epochs)):
        length = float(steps[-1] / epochs[-1])
    else:
        begun = float(epochs[-1] - epochs[0])
        start = float(steps[int(np.argmax(epochs == epochs[-1]))])
        length = start / begun if begun else 0.0
    return length if length >= 1.0 else None


def joined(parts: Sequence[Series]) -> Series:
    """Pieces of a metric, read one after the other, as one."""
    if not parts:
        return np.empty(0), np.empty(0)
    return np.concatenate([steps for steps, _ in parts]), np.concatenate([values for _, values in parts])


def _whole(steps: Floats, values: Floats, name: str, notes: Counter[str]) -> Series:
    whole = steps == np.floor(steps)
    broken = len(steps) - int(whole.sum())
    if broken > 0.1 * len(steps):
        first = ", ".join(f"{step:g}" for step in steps[~whole][:3])
        raise ValueError(
            f"{name}: the steps are no whole numbers ({first}, ...): epochs or seconds? "
            "name the column of optimizer steps with --step, or number the rows with --step row"
        )
    _count(notes, f"{name}: step is no whole number, left out", broken)
    return steps[whole], values[whole]


def _in_order(steps: Floats, values: Floats, name: str, notes: Counter[str]) -> Series:
    starts = np.concatenate(([0], np.flatnonzero(np.diff(steps) < 0.0) + 1))
    ends = np.concatenate((starts[1:], [len(steps)])) - 1
    kept = np.ones(len(steps), dtype=bool)
    if len(starts) <= RESTARTS:
        furthest = -1.0
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            if start > 0 and steps[end] >= furthest:
                kept[:start] &= steps[:start] < steps[start]
                _count(notes, f"{name}: restarts from an earlier step, what they repeat is replaced", 1)
            elif start:
                _count(notes, f"{name}: rows out of order, sorted in", end + 1 - start)
            furthest = max(furthest, float(steps[end]))
    else:
        _count(notes, f"{name}: rows out of order, sorted in", len(starts) - 1)
    steps, values = steps[kept], values[kept]
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    last = np.append(np.diff(steps) > 0.0, True)
    _count(notes, f"{name}: step repeated, the last value counts", len(steps) - int(last.sum()))
    return steps[last], values[last]


def _of_one_unit(steps: Floats, values: Floats, name: str, notes: Counter[str]) -> Series:
    """Leave out a few steps that lie far beyond all others; they would be taken for the run's length."""
    if len(steps) < 8:
        return steps, values
    gaps, before = np.diff(steps), steps[:-1] - steps[0]
    jumps = np.flatnonzero(gaps > JUMP * before)
    if len(jumps) and jumps[-1] >= SOME:
        at = int(jumps[-1])
        if len(steps) - at > 0.2 * len(steps):
            raise ValueError(
                f"{name}: steps jump from {steps[at]:,.0f} to {steps[at + 1]:,.0f}: two units in one column? "
                "name another with --step, or split the file"
            )
    far = np.flatnonzero(gaps > FAR * np.maximum(before, 3.0 * np.median(gaps)))
    far = far[far >= 0.8 * len(steps)]
    if len(far) == 0:
        return steps, values
    cut = int(far[0]) + 1
    _count(notes, f"{name}: step far beyond all others (another unit?), left out", len(steps) - cut)
    return steps[:cut], values[:cut]


def _count(notes: Counter[str], what: str, count: int) -> None:
    if count:
        notes[what] += count
