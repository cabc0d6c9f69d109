"""The running state of a stream of values: its level, its noise, and isolated spikes pulled in."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from scale_callbacks._state import finite, natural

Stream: TypeAlias = tuple[int, float, float, float, float, float, float, int]
# observations, last step, level, last kept, mean |second difference|, last value, the one before, clipped

BLANK: Stream = (0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
LARGEST = 1e100  # a value beyond it is counted as non-finite: sums of squares would overflow
SETTLED = 100  # observations from which on `fold` may be used: the weights no longer change


def advance(stream: Stream, step: float, value: float) -> tuple[Stream, float]:
    """The stream after one more value, and that value with an isolated spike pulled in.

    A spike lies beyond both the smoothed level and the last kept value by five standard deviations and a few
    percent of the level. Four in a row are a jump, not a spike: the level follows them.
    """
    count, _, level, kept, rough, last, before, clipped = stream
    if count == 0:
        return (1, step, value, value, 0.0, value, value, 0), value
    size = level if level >= 0.0 else -level
    if count >= 2:
        bend = abs(value - 2.0 * last + before)
        weight = max(2.0 / count, 0.02)
        rough = bend if count == 2 else rough + weight * (min(bend, 3.0 * rough + 1e-5 * size) - rough)
    if count < 20:
        kept = value
    else:
        high = max(level, kept) + 2.5 * rough + 0.02 * size
        low = min(level, kept) - 2.5 * rough - 0.05 * size
        kept = high if value > high else low if value < low else value
        clipped = 0 if kept == value else clipped + 1
        if clipped >= 4:
            return (count + 1, step, value, value, rough, value, last, 0), value
    level += max(1.0 / (count + 1), 0.1) * (kept - level)
    return (count + 1, step, level, kept, rough, value, last, clipped), kept


def fold(
    stream: Stream, row: list[float], steps: Sequence[float], values: Sequence[float], robust: bool
) -> Stream:
    """`advance` for many values of one bin: the same operations in the same order, in one loop.

    Args:
        stream: the state before them, of `SETTLED` observations or more.
        row: the bin they fall in (count, mean step, mean value, sum of squares, mean robust value), changed
            in place.
        steps: their steps, increasing.
        values: the values, finite.
        robust: whether spikes are pulled in for the row's last entry.

    Returns:
        The state after them.
    """
    seen, at, level, kept, rough, last, before, clipped = stream
    count, middle, mean, squares, calm = row
    for at, value in zip(steps, values, strict=True):
        size = level if level >= 0.0 else -level
        bend = abs(value - 2.0 * last + before)
        most = 3.0 * rough + 1e-5 * size
        rough += 0.02 * ((bend if bend < most else most) - rough)
        high = (level if level > kept else kept) + 2.5 * rough + 0.02 * size
        low = (level if level < kept else kept) - 2.5 * rough - 0.05 * size
        kept = high if value > high else low if value < low else value
        clipped = 0 if kept == value else clipped + 1
        if clipped >= 4:
            level, kept, clipped = value, value, 0
        else:
            level += 0.1 * (kept - level)
        before, last = last, value
        count += 1.0
        off = value - mean
        middle += (at - middle) / count
        mean += off / count
        squares += off * (value - mean)
        calm += ((kept if robust else value) - calm) / count
    row[:] = count, middle, mean, squares, calm
    return seen + len(steps), at, level, kept, rough, last, before, clipped


def as_stream(values: Sequence[float]) -> Stream:
    """A state as it comes back from JSON."""
    count, *floats, clipped = values
    step, level, kept, rough, last, before = map(float, floats)
    if max(abs(value) for value in (level, kept, rough, last, before)) > 10.0 * LARGEST:
        raise ValueError("a value of the stream is too large")
    return int(count), step, level, kept, rough, last, before, int(clipped)


def checked_row(row: Iterable[Any], low: float, high: float) -> list[float]:
    """A bin as it comes back from JSON, which must lie between two steps."""
    count, step, value, squares, robust = finite(row, 5)
    if natural(count) < 1 or squares < 0.0 or not low * (1.0 - 1e-9) <= step <= high * (1.0 + 1e-9):
        raise ValueError(f"a bin from step {low} to {high} with {count} observations about step {step}")
    if max(abs(value), abs(robust) / 10.0, math.sqrt(squares / count) / 2.0) > LARGEST:
        raise ValueError(f"a bin of values about {value}")
    return [count, step, value, squares, robust]


def merged(a: list[float], b: list[float]) -> list[float]:
    """Two neighbouring bins in one."""
    if not (a[0] and b[0]):
        return a if a[0] else b
    count = a[0] + b[0]
    share = b[0] / count
    step, value, robust = (a[i] + share * (b[i] - a[i]) for i in (1, 2, 4))
    return [count, step, value, a[3] + b[3] + a[0] * share * (b[2] - a[2]) ** 2, robust]
