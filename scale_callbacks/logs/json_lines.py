"""JSON: one object a line (JSONL), or a list of objects (a history of Weights & Biases)."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from scale_callbacks.logs.log import Floats, Series, joined
from scale_callbacks.logs.names import STEPS, choose
from scale_callbacks.logs.table import ROW, Told, nobody
from scale_callbacks.report_text import printable

READ = 1 << 20  # characters parsed at once
CHUNK = 10_000  # rows of a list taken at once
LOOK = 1000  # rows looked at for names before all are read
Rows = list[dict[str, Any]]
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
        for row in islice(chain.from_iterable(chunks_of(path, Counter(), nobody)), LOOK):
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
        return collected(chunks_of(self._path, self.notes, self._told), self._step, names, self.notes)


def collected(
    chunks: Iterable[Rows], step: str | None, names: Sequence[str], notes: Counter[str]
) -> dict[str, Series]:
    """Steps and values of some keys of many rows.

    Args:
        chunks: the rows, some at a time, in the order of logging.
        step: the key of steps; None numbers the rows.
        names: the keys.
        notes: counts values that are no numbers.
    """
    found: dict[str, list[Series]] = {name: [] for name in names}
    number = 0
    for rows in chunks:
        if step is None:
            at = np.arange(number + 1.0, number + len(rows) + 1.0)
        else:
            at = _column(_cells(rows, step), step, Counter())
        number += len(rows)
        for name in names:
            cells = _cells(rows, name)
            values = _column(cells, name, notes)
            if None in cells:
                there = np.array([cell is not None for cell in cells], dtype=bool)
                found[name].append((at[there], values[there]))
            else:
                found[name].append((at, values))
    return {name: joined(parts) for name, parts in found.items()}


def chunks_of(path: Path, notes: Counter[str], told: Told) -> Iterator[Rows]:
    """The objects of a file, flattened, some at a time; what cannot be read is counted."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        begin = file.read(4096).lstrip()[:1]
    if begin == "[":
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        items = salvaged(text, text.index("[") + 1, notes)
        while rows := [flat(item) for item in islice(items, CHUNK)]:
            yield rows
        return
    size = max(path.stat().st_size, 1)
    with path.open("rb") as raw:
        file = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace")
        while lines := file.readlines(READ):
            told(min(raw.tell() / size, 1.0))
            yield _parsed(lines, notes)


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


def _parsed(lines: list[str], notes: Counter[str]) -> Rows:
    try:
        text = ",".join(lines)
        items = json.loads(f"[{text}]")
        if len(items) != len(lines):
            raise ValueError("several values a line")
    except (ValueError, RecursionError):
        items = [_line(line) for line in lines if not line.isspace()]
    # The shortcuts below are for the usual file: an object a line, without objects in it.
    rows = items if set(map(type, items)) == {dict} else [item for item in items if isinstance(item, dict)]
    notes[CUT] += len(items) - len(rows)
    return rows if text.count("{") == len(rows) else [flat(row) for row in rows]


def _cells(rows: Rows, name: str) -> list[Any]:
    try:
        return list(map(itemgetter(name), rows))
    except KeyError:
        return [row.get(name) for row in rows]


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _column(cells: list[Any], name: str, notes: Counter[str]) -> Floats:
    """Numbers, also where they were logged as text; NaN where there is none, counted unless it says so."""
    try:
        return np.array(cells, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        pass
    values = np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        try:
            values[i] = math.nan if cell is None else float(cell)
        except (ValueError, TypeError, OverflowError):
            notes[f"{printable(name, 60)}: no number, left out"] += 1
    return values
