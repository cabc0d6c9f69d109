"""Curve: a bounded, exact-to-resume summary of the (step, value) pairs a run has shown so far."""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress, pairwise
from typing import Any, SupportsFloat, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scale_callbacks._numbers import as_floats, check_steps
from scale_callbacks._state import finite, natural, reading
from scale_callbacks._stream import (
    BLANK,
    LARGEST,
    SETTLED,
    Stream,
    advance,
    as_stream,
    checked_row,
    fold,
    merged,
)

Floats: TypeAlias = NDArray[np.float64]

_GROWTH = 1.5  # bin edges are horizon * (i / bins) ** 1.5: finer where the curve bends
_MOST_BINS = 2**16  # in a state that is to be believed
_LEAST = 1.0 - 1e-9  # of a bin's mean step, whose sums are rounded
_RING = 1024  # raw observations kept for exact rewinds
_MANY = 64  # observations in one call from which on they are folded in bin by bin


@dataclass(frozen=True)
class Bins:
    """The occupied bins of a curve, in order of steps; read-only arrays of one length.

    Attributes:
        steps: mean step of the observations in each bin.
        mean: their mean value.
        robust: their mean value after isolated spikes were pulled in.
        spread: their standard deviation (0 for a single observation).
        count: how many there are.
    """

    steps: Floats
    mean: Floats
    robust: Floats
    spread: Floats
    count: Floats

    def __len__(self) -> int:
        return len(self.steps)


class Curve:
    """What a run has shown so far, in at most `bins` bins whatever its length.

    Every observation is folded in by itself with plain floats, with the same operations in the same order
    however many come at once, so the split of a stream over calls changes nothing. A call that starts at or
    before the last step rewinds: what came after is replaced. A rewind is exact while the last 1,024
    observations reach back to the start of the bin it cuts; further back, the part of that one bin that can
    no longer be rebuilt is left out. Steps past the horizon are kept: bins are then merged in pairs, which
    stretches the same edges by 2**1.5.

    Args:
        horizon: planned number of optimizer steps, at least 1.
        bins: how many bins the planned run is summarised in (even, at least 8).
        robust: whether isolated spikes are pulled in for `Bins.robust`.

    >>> curve = Curve(100)
    >>> curve.observe([1, 2, 3], [4.0, 3.0, float("nan")])
    >>> curve.n, curve.nonfinite, curve.last_step
    (2, 1, 2)
    """

    def __init__(self, horizon: int, *, bins: int = 384, robust: bool = True) -> None:
        if not horizon >= 1:
            raise ValueError(f"horizon must be at least 1 step, got {horizon!r}")
        if bins < 8 or bins % 2:
            raise ValueError(f"bins must be an even number of at least 8, got {bins!r}")
        self._robust = bool(robust)
        self._edge = float(horizon)  # the step at which the last bin ends
        self._size = int(bins)
        self._rows: list[list[float]] = [[0.0] * 5 for _ in range(bins)]  # n, step, value, M2, robust: means
        self._starts: list[Stream | None] = [None] * bins  # the stream's state before each bin's first value
        self._stream: Stream = BLANK
        self._ring: deque[tuple[float, float]] = deque(maxlen=_RING)
        self._first = -1.0
        self._told: tuple[Stream, float, Bins] | None = None  # the bins last asked for, and when that was
        self._table, self._stale = np.zeros((bins, 5)), 0  # the rows then, and the first changed since
        self.nonfinite = 0
        self.rewinds = 0

    @property
    def n(self) -> int:
        """Finite observations in the curve."""
        return self._stream[0]

    @property
    def first_step(self) -> float | None:
        """Step of the first finite observation."""
        return _tidy(self._first) if self.n else None

    @property
    def last_step(self) -> float | None:
        """Step of the last finite observation."""
        return _tidy(self._stream[1]) if self.n else None

    @property
    def last_value(self) -> float | None:
        """Value of the last finite observation."""
        return self._stream[5] if self.n else None

    @property
    def noise(self) -> float:
        """Standard deviation of one observation, from second differences (blind to the trend)."""
        return 0.512 * self._stream[4]  # mean |second difference| of white noise is sqrt(12 / pi) of its sd

    def observe(self, steps: ArrayLike | SupportsFloat, values: ArrayLike | SupportsFloat) -> None:
        """Fold in one observation or a batch of them.

        Args:
            steps: optimizer steps, 0 or later; a scalar or a sequence, strictly increasing.
            values: the values measured there, as many as steps.

        Raises:
            TypeError: for what is not a number.
            ValueError: for lengths that differ; for steps negative, not finite or not increasing.
        """
        xs, ys = as_floats(steps, "steps"), as_floats(values, "values")
        if len(xs) != len(ys):
            raise ValueError(f"steps and values must be equally long, got {len(xs)} and {len(ys)}")
        check_steps(xs)
        if len(xs) >= _MANY:
            xs, ys = self._observe_many(xs, ys)
        for step, value in zip(xs, ys, strict=True):
            if not -LARGEST < value < LARGEST:  # false for NaN too
                self.nonfinite += 1
                continue
            if step <= self._stream[1]:
                self._rewind(step)
                self.rewinds += 1
            self._add(step, value)

    def mean_after(self, step: float) -> float | None:
        """Mean of the values after a step, None where there are none.

        Exact as far back as the last 1,024 observations reach; further back, by whole bins.
        """
        if self._stream[1] <= step:
            return None
        if len(self._ring) == self.n or (self._ring and self._ring[0][0] <= step):
            values = [value for at, value in self._ring if at > step]
            return sum(values) / len(values) if values else None
        later = [(row[0], row[2]) for row in self._rows if row[0] and row[1] > step]
        return sum(n * mean for n, mean in later) / sum(n for n, _ in later) if later else None

    def until(self, step: float) -> Curve:
        """A copy that has seen nothing past a step; of the bin that the step cuts, as a rewind leaves it."""
        twin = Curve(1)
        twin.load_state_dict(self.state_dict())
        if twin.n and step < twin._stream[1]:
            twin._rewind(max(math.nextafter(step, math.inf), 0.0))
        return twin

    def bins(self) -> Bins:
        """The occupied bins so far."""
        if self._told is not None and self._told[0] is self._stream and self._told[1] == self._edge:
            return self._told[2]
        end = self._bin(self._stream[1]) + 1 if self.n else 0
        if self._stale < end:
            self._table[self._stale : end] = self._rows[self._stale : end]
        self._table[end:] = 0.0
        self._stale = max(end - 1, 0)
        count, steps, mean, squares, robust = self._table[self._table[:, 0] > 0.0].T.copy()
        columns = (steps, mean, robust, np.sqrt(squares / np.maximum(count, 1.0)), count)
        for column in columns:
            column.flags.writeable = False
        self._told = (self._stream, self._edge, Bins(*columns))
        return self._told[2]

    def state_dict(self) -> dict[str, Any]:
        """Everything the curve holds, as plain JSON data."""
        return {
            "robust": self._robust,
            "edge": self._edge,
            "bins": self._size,
            "rows": {str(i): list(row) for i, row in enumerate(self._rows) if row[0]},
            "starts": {str(i): list(start) for i, start in enumerate(self._starts) if start is not None},
            "stream": list(self._stream),
            "ring": [list(pair) for pair in self._ring],
            "first": self._first,
            "nonfinite": self.nonfinite,
            "rewinds": self.rewinds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state made by `state_dict`; the curve then goes on exactly as the saved one would.

        Raises:
            ValueError: the state is damaged; the curve is then as it was before.
        """
        with reading("the state of a curve"):
            size, edge = natural(state["bins"]), finite([state["edge"]])[0]
            if not (8 <= size <= _MOST_BINS and size % 2 == 0 and edge >= 1.0):
                raise ValueError(f"{size} bins up to step {edge}")
            rows, starts = [[0.0] * 5 for _ in range(size)], cast(list[Stream | None], [None] * size)
            for i, row in state["rows"].items():
                index = natural(int(i))
                low, high = (edge * ((index + j) / size) ** _GROWTH for j in (0, 1))
                rows[index] = checked_row(row, low, high)
            for i, start in state["starts"].items():
                starts[natural(int(i))] = as_stream(finite(start, len(BLANK)))
            stream = as_stream(finite(state["stream"], len(BLANK)))
            ring = [(step, value) for step, value in (finite(pair, 2) for pair in state["ring"])]
            means = [row[1] for row in rows if row[0]]
            if any(a >= b for a, b in pairwise(means)) or (
                means and not means[-1] * _LEAST <= stream[1] <= edge
            ):
                raise ValueError("the bins are not in order")
            if sum(row[0] for row in rows) != stream[0] or len(ring) > stream[0]:
                raise ValueError("the bins do not hold what was counted")
            if any(abs(value) > LARGEST for _, value in ring):
                raise ValueError("one of the latest observations is too large")
            if any(a[0] >= b[0] for a, b in pairwise(ring)) or (ring and ring[-1][0] > stream[1]):
                raise ValueError("the latest observations are not in order")
            first, nonfinite = finite([state["first"]])[0], natural(state["nonfinite"])
            rewinds, robust = natural(state["rewinds"]), bool(state["robust"])
        self._robust, self._edge, self._size, self._rows, self._starts = robust, edge, size, rows, starts
        self._stream, self._ring, self._first, self._told = stream, deque(ring, maxlen=_RING), first, None
        self._table, self._stale = np.zeros((size, 5)), 0
        self.nonfinite, self.rewinds = nonfinite, rewinds

    def _bin(self, step: float) -> int:
        index = int(self._size * (step / self._edge) ** (1.0 / _GROWTH))
        return index if index < self._size else self._size - 1

    def _add(self, step: float, value: float) -> None:
        while step > self._edge:
            self._widen()
        index = self._bin(step)
        if self._starts[index] is None:
            self._starts[index] = self._stream
        if not self._stream[0]:
            self._first = step
        self._ring.append((step, value))
        self._stream, robust = advance(self._stream, step, value)
        row = self._rows[index]
        row[0] = count = row[0] + 1.0
        off = value - row[2]
        row[1] += (step - row[1]) / count
        row[2] += off / count
        row[3] += off * (value - row[2])
        row[4] += ((robust if self._robust else value) - row[4]) / count

    def _observe_many(self, xs: list[float], ys: list[float]) -> tuple[list[float], list[float]]:
        """Fold in a batch bin by bin, several times as fast; returns what is left to fold in one by one."""
        finite = np.abs(ys) < LARGEST  # false for NaN too
        if not finite.all():
            self.nonfinite += len(ys) - int(finite.sum())
            xs, ys = list(compress(xs, finite)), list(compress(ys, finite))
        if not xs or xs[0] <= self._stream[1]:
            return xs, ys  # a rewind
        done = 0
        while done < len(xs) and self._stream[0] < SETTLED:
            self._add(xs[done], ys[done])
            done += 1
        ringed = done
        while done < len(xs) and xs[done] <= self._edge:
            index = self._bin(xs[done])
            # Steps past the edge fall in the last bin here, and are left to `_add`, which widens.
            end = bisect.bisect_right(xs, index, done, key=lambda step: self._bin(min(step, self._edge)))
            end = min(end, bisect.bisect_right(xs, self._edge, done))
            if self._starts[index] is None:
                self._starts[index] = self._stream
            self._stream = fold(self._stream, self._rows[index], xs[done:end], ys[done:end], self._robust)
            done = end
        ringed = max(ringed, done - _RING)
        self._ring.extend(zip(xs[ringed:done], ys[ringed:done], strict=True))
        return xs[done:], ys[done:]

    def _widen(self) -> None:
        half = self._size // 2
        pairs = [(self._rows[2 * i], self._rows[2 * i + 1]) for i in range(half)]
        starts = [self._starts[2 * i] or self._starts[2 * i + 1] for i in range(half)]
        self._rows = [merged(a, b) for a, b in pairs] + [[0.0] * 5 for _ in range(half)]
        self._starts = starts + [None] * half
        self._edge *= 2.0**_GROWTH
        self._stale = 0

    def _rewind(self, step: float) -> None:
        cut = self._bin(step) if step <= self._edge else self._size
        for index in range(self._size - 1, cut, -1):
            self._drop(index)
        if cut < self._size and self._starts[cut] is not None:
            self._drop(cut)
        while self._ring and self._ring[-1][0] >= step:
            self._ring.pop()
        again: list[tuple[float, float]] = []
        while self._ring and self._ring[-1][0] > self._stream[1]:
            again.append(self._ring.pop())
        for pair in reversed(again):
            self._add(*pair)

    def _drop(self, index: int) -> None:
        start = self._starts[index]
        if start is not None:
            self._rows[index], self._starts[index], self._stream = [0.0] * 5, None, start
            self._stale = min(self._stale, index)


def _tidy(step: float) -> float:
    return int(step) if step == int(step) else step
