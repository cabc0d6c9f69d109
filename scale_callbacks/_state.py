"""States that come back from a checkpoint: told from damaged ones before a number of them is used."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SEAL = "seal"


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever a damaged state causes into a ValueError that says what cannot be used."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as fault:
        raise ValueError(f"{what} is damaged ({type(fault).__name__}: {fault}): start without it") from fault


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with a checksum of itself."""
    return {**state, SEAL: _checksum(state)}


def check_seal(state: Mapping[str, Any]) -> None:
    """Raise ValueError where a state is not what its checksum was taken of; one without a checksum passes."""
    if SEAL in state:
        bare = {name: value for name, value in state.items() if name != SEAL}
        if _checksum(bare) != state[SEAL]:
            raise ValueError("its checksum does not fit")


def check_numbers(state: Any) -> None:
    """Raise ValueError where any number of a state is not finite."""
    json.dumps(_plain(state), allow_nan=False)


def finite(values: Iterable[Any], count: int | None = None) -> list[float]:
    """Plain floats, as many as wanted; ValueError where one is not finite."""
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a number is not finite")
    if count is not None and len(numbers) != count:
        raise ValueError(f"{len(numbers)} numbers, not {count}")
    return numbers


def natural(value: Any) -> int:
    """A count: a whole number, 0 or more."""
    if isinstance(value, bool) or int(value) != value or value < 0:
        raise ValueError(f"{value!r} is no count")
    return int(value)


def _checksum(state: Any) -> int:
    # Numbers as floats: some stores of checkpoints give back 1.0 for 1.
    return zlib.crc32(json.dumps(_plain(state), sort_keys=True).encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | str) else float(value)
