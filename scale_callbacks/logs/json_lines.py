"""JSON: one object a line (JSONL), or a list of objects (a history of Weights & Biases)."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from scale_callbacks.logs.log import Series
from scale_callbacks.logs.names import STEPS, choose
from scale_callbacks.logs.table import ROW, Told, nobody

CHUNK = 10_000  # lines parsed at once
LOOK = 1000  # rows looked at for names before all are read
CUT = "line or entry cut short or no JSON object, left out"


class JsonSource:
    """A file of JSON objects, one a logged row; numbers inside objects are named by their path.

    Args:
        path: the file.
        step: the key of optimizer steps, "row" to number the rows; None finds it.
        told: told the share of the file that is read.

    Raises:
        OSError: the file cannot be read.
        ValueError: no object in it, or no key that may be the step.
    """

    def __init__(self, path: Path, step: str | None = None, told: Told = nobody) -> None:
        self.label, self.planned, self.ended = path.name, None, None
        self.notes: Counter[str] = Counter()
        self._path, self._told = path, told
        keys: dict[str, None] = {}
        for row in islice(rows_of(path, Counter(), nobody), LOOK):
            keys |= dict.fromkeys(row)
        if not keys:
            raise ValueError(f"{path} holds no JSON object: one a line is needed, or a list of them")
        self._step = None if step == ROW else choose(self.label, list(keys), step, STEPS, "--step")
        self.names = [name for name in keys if name != self._step]

    def is_mean(self, name: str) -> bool:
        """Nothing is known of how a value came about."""
        return False

    def read(self, names: Sequence[str]) -> dict[str, Series]:
        """Steps and values of keys; rows without the key are left out."""
        self.notes.pop(CUT, None)
        return collected(rows_of(self._path, self.notes, self._told), self._step, names, self.notes)


def collected(
    rows: Iterator[Mapping[str, Any]], step: str | None, names: Sequence[str], notes: Counter[str]
) -> dict[str, Series]:
    """Steps and values of some keys of many rows.

    Args:
        rows: the rows, in the order of logging.
        step: the key of steps; None numbers the rows.
        names: the keys.
        notes: counts values that are no numbers.
    """
    steps: dict[str, list[float]] = {name: [] for name in names}
    values: dict[str, list[float]] = {name: [] for name in names}
    for number, row in enumerate(rows, start=1):
        at: Any = number if step is None else row.get(step)
        if type(at) is not int and type(at) is not float:
            at = _number(at)
        for name in names:
            value = row.get(name)
            if value is None:
                continue
            if type(value) is not float:
                value = _number(value)
                if value != value and row[name] not in ("NaN", "nan"):
                    notes[f"{name}: no number, left out"] += 1
            steps[name].append(at)
            values[name].append(value)
    return {name: (np.array(steps[name], dtype=float), np.array(values[name], dtype=float)) for name in names}


def rows_of(path: Path, notes: Counter[str], told: Told) -> Iterator[dict[str, Any]]:
    """The objects of a file, flattened; what cannot be read is counted."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        begin = file.read(4096).lstrip()[:1]
    if begin == "[":
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        for item in salvaged(text, text.index("[") + 1, notes):
            yield flat(item)
        return
    size = max(path.stat().st_size, 1)
    with path.open("rb") as raw:
        file = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace")
        while lines := list(islice(file, CHUNK)):
            told(min(raw.tell() / size, 1.0))
            yield from _parsed(lines, notes)


def salvaged(text: str, start: int, notes: Counter[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list, as far as they can be read."""
    decoder, blank = json.JSONDecoder(), " \t\r\n,"
    while True:
        while start < len(text) and text[start] in blank:
            start += 1
        if text[start : start + 1] == "]":
            return
        try:
            item, start = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            notes[CUT] += 1
            return
        if isinstance(item, dict):
            yield item
        else:
            notes[CUT] += 1


def flat(item: Mapping[str, Any], before: str = "", depth: int = 0) -> dict[str, Any]:
    """An object whose inner objects are spelled out: {"train": {"loss": 1}} becomes {"train/loss": 1}."""
    if not any(isinstance(value, dict) for value in item.values()) and not before:
        return dict(item)
    row: dict[str, Any] = {}
    for key, value in item.items():
        if isinstance(value, dict) and depth < 4:
            row |= flat(value, f"{before}{key}/", depth + 1)
        else:
            row[f"{before}{key}"] = value
    return row


def _parsed(lines: list[str], notes: Counter[str]) -> Iterator[dict[str, Any]]:
    filled = [line for line in lines if not line.isspace()]
    try:
        items = json.loads(f"[{','.join(filled)}]")
        if len(items) != len(filled):
            raise ValueError("several values a line")
    except (ValueError, RecursionError):
        items = [_line(line) for line in filled]
    for item in items:
        if isinstance(item, dict):
            yield flat(item)
        else:
            notes[CUT] += 1


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _number(value: Any) -> float:
    """A number, also where it was logged as text; NaN for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return float("nan")
    try:
        return float(value)
    except (ValueError, OverflowError):
        return float("nan")
