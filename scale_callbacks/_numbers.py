"""Numbers as users hand them in: plain floats, or an error that names what was wrong."""

from __future__ import annotations

from typing import Any, SupportsFloat, cast

import numpy as np
from numpy.typing import ArrayLike

_MANY = 64  # from which on numpy is quicker than a loop


def as_floats(values: ArrayLike | SupportsFloat, name: str) -> list[float]:
    """Plain floats from a scalar (Python, NumPy, 0-d tensor) or a one-dimensional sequence.

    Raises:
        TypeError: for strings and other things that are no numbers, naming them.
    """
    if not isinstance(values, (str, bytes)):
        try:
            return [float(cast(SupportsFloat, values))] if not _has_length(values) else _listed(values)
        except (TypeError, ValueError):
            pass
    raise TypeError(
        f"{name} must be a number or a sequence of numbers, got {values!r}: convert it with float()"
    )


def check_steps(steps: list[float]) -> None:
    """Raise ValueError, naming the values, unless steps are finite, not negative and strictly increasing."""
    if len(steps) >= _MANY:
        array = np.array(steps)
        if array[0] >= 0.0 and array[-1] < np.inf and (array[1:] > array[:-1]).all():
            return
    previous = -1.0
    for step in steps:
        if not 0.0 <= step < float("inf"):
            raise ValueError(
                f"steps must be finite and not negative, got {step!r}: count optimizer steps from 1"
            )
        if step <= previous:
            raise ValueError(
                f"steps must increase within one call, got {step:g} after {previous:g}: "
                "sort them, or observe a restart from a checkpoint in a call of its own"
            )
        previous = step


def _has_length(values: object) -> bool:
    return np.ndim(cast(Any, values)) > 0 if not hasattr(values, "ndim") else bool(values.ndim)


def _listed(values: object) -> list[float]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "fiub"):
        raise TypeError
    return cast(list[float], array.astype(np.float64).tolist())
