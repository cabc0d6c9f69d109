"""Forecast: what a run is heading for, as plain immutable data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scale_callbacks._state import finite

Floats = NDArray[np.float64]
_PATHS = ("path_steps", "path_value", "path_low", "path_high")
PATH = 64  # most points a path is stored on


class Status(StrEnum):
    """What to bear in mind when reading a forecast."""

    OK = "ok"
    EARLY = "early"  # less than a tenth of the plan seen
    PAST_HORIZON = "past_horizon"  # the run went on after its plan; the horizon moved with it
    UNFAMILIAR = "unfamiliar"  # like no kind of run the prior knows well: a wide interval, no confidence


@dataclass(frozen=True)
class Forecast:
    """The mean loss over the last 1% of the plan, with the path that leads there.

    Attributes:
        value: the forecast (median), in the loss's own units.
        low: lower end of the interval.
        high: upper end of the interval.
        level: probability the interval is meant to hold the truth with, its own noise included.
        step: last step seen.
        horizon: step forecast at.
        status: what to bear in mind.
        path_steps: steps of the path, from the first seen to the horizon.
        path_value: median of the mean loss at each of them.
        path_low: lower ends there.
        path_high: upper ends there.
        weights: posterior weight of each family of laws, summing to 1.
    """

    value: float
    low: float
    high: float
    level: float
    step: int
    horizon: int
    status: Status
    path_steps: tuple[float, ...]
    path_value: tuple[float, ...]
    path_low: tuple[float, ...]
    path_high: tuple[float, ...]
    weights: Mapping[str, float]

    def at(self, steps: ArrayLike) -> tuple[Floats, Floats, Floats]:
        """(value, low, high) of the mean loss at the given steps, held constant outside the path."""
        x, known = np.asarray(steps, dtype=np.float64), np.array(self.path_steps)
        paths = (self.path_value, self.path_low, self.path_high)
        value, low, high = (np.interp(x, known, path) for path in paths)
        return value, low, high

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data that `from_dict` turns back into the same forecast."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        paths = {name: list(value) for name, value in plain.items() if name.startswith("path_")}
        return plain | paths | {"status": str(self.status), "weights": dict(self.weights)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a forecast from `to_dict`."""
        paths = {name: tuple(finite(data[name])) for name in _PATHS}
        if len({len(path) for path in paths.values()}) > 1:
            raise ValueError("the paths of a forecast are not equally long")
        finite([data["value"], data["low"], data["high"], data["level"]])
        return cls(**{**data, **paths, "status": Status(data["status"]), "weights": dict(data["weights"])})
