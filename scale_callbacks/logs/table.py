"""Tables: CSV files, whoever wrote them (Lightning's `metrics.csv`, an export of Weights & Biases, ...)."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from scale_callbacks.logs.log import Floats, Series, joined
from scale_callbacks.logs.names import STEPS, UnknownNameError, choose, listed
from scale_callbacks.report_text import printable

READ = 1 << 20  # characters read at once
CHUNK = 20_000  # rows turned into numbers at once
SHORT = "line cut short, left out"
ROW = "row"  # asks for the number of the row in place of a step
EMPTY = ("", "nan", "NaN", "None", "null", "NULL")
WIDEST = 10_000_000  # characters of a cell

Told = Callable[[float], object]


def nobody(share: float) -> None:
    """Take a share of the work done, and tell nobody."""


class TableSource:
    """A CSV file with a header line.

    Args:
        path: the file.
        step: the column of optimizer steps, "row" to number the rows; None finds it.
        told: told the share of the file that is read.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is empty, binary, or has no header line.
    """

    def __init__(self, path: Path, step: str | None = None, told: Told = nobody) -> None:
        self.label, self.planned, self.ended = path.name, None, None
        self.notes: Counter[str] = Counter()
        self._path, self._told = path, told
        self._columns, self._delimiter, self._headed = _header(path, step)
        self._step = None if step == ROW else choose(self.label, self._columns, step, STEPS, "--step")
        known = set(self._columns)
        self.names = [
            name
            for name in dict.fromkeys(self._columns)
            if name and name != self._step and not _is_bound(name, known)
        ]

    def is_mean(self, name: str) -> bool:
        """Nothing is known of how a column came about."""
        return False

    def read(self, names: Sequence[str]) -> dict[str, Series]:
        """Steps and values of columns; rows where a column is empty are left out."""
        found: dict[str, list[Series]] = {name: [] for name in names}
        columns = [self._columns.index(name) for name in names]
        if self._step is not None:
            columns.insert(0, self._columns.index(self._step))
        number = 0
        for table in self._tables(columns):
            steps = np.arange(number + 1.0, number + len(table[0]) + 1.0)
            number += len(table[0])
            values = list(table)
            if self._step is not None:
                steps = self._numbers(values.pop(0), self._step, number)
            for name, cells in zip(names, values, strict=True):
                there = _filled(cells)
                found[name].append((steps[there], self._numbers(cells, name, number)[there]))
        return {name: joined(parts) for name, parts in found.items()}

    def _tables(self, columns: list[int]) -> Iterator[list[Any]]:
        """The columns wanted, some rows at a time: as numbers where all are, else as text."""
        size = max(self._path.stat().st_size, 1)
        with self._path.open("rb") as raw:
            file = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline="")
            if self._headed:
                header = _rows(file, self._delimiter)
                while not next(header, ["end"]):
                    pass  # blank lines before it
            lines = file.readlines(READ)
            while lines and (numbers := self._at_once(lines, columns)) is not None:
                yield list(numbers.T)
                self._told(min(raw.tell() / size, 1.0))
                lines = file.readlines(READ)
            rows = _rows(chain(lines, file), self._delimiter)
            while chunk := list(islice(rows, CHUNK)):
                whole = [row for row in chunk if len(row) > max(columns)]
                self.notes[SHORT] += sum(1 for row in chunk if 0 < len(row) <= max(columns))
                if whole:
                    yield [[row[column] for row in whole] for column in columns]
                self._told(min(raw.tell() / size, 1.0))

    def _at_once(self, lines: list[str], columns: list[int]) -> Floats | None:
        """(rows, columns) by numpy's own reader, which is fast and takes nothing but numbers; None else."""
        if lines[0].isspace() or any('"' in line for line in lines):
            return None
        try:
            return np.loadtxt(
                lines, delimiter=self._delimiter, usecols=columns, ndmin=2, comments=None, dtype=np.float64
            )
        except (ValueError, IndexError, OverflowError):
            return None

    def _numbers(self, cells: Floats | list[str], name: str, before: int) -> Floats:
        """Numbers from text; NaN, counted, where a cell is none."""
        if isinstance(cells, np.ndarray):
            return cells
        try:
            return np.array(cells, dtype=np.float64) if "" not in cells else _sparse(cells)
        except ValueError:
            pass
        values = np.full(len(cells), np.nan)
        for i, cell in enumerate(cells):
            try:
                values[i] = float(cell) if cell not in EMPTY else np.nan
            except ValueError:
                column = printable(name, 60)
                if not self.notes[f"{column}: no number, left out"]:
                    where = f"{printable(cell, 30)!r} in data row {before + i + 1}"
                    self.notes[f"{column}: for instance {where}"] = 1
                self.notes[f"{column}: no number, left out"] += 1
        return values


def _filled(cells: Floats | list[str]) -> Any:
    """Which cells hold something."""
    if isinstance(cells, np.ndarray) or "" not in cells:
        return slice(None)
    return np.array([cell != "" for cell in cells], dtype=bool)


def _sparse(cells: list[str]) -> Floats:
    """Numbers where most cells may be empty."""
    there = np.array([cell != "" for cell in cells], dtype=bool)
    values = np.full(len(cells), np.nan)
    values[there] = np.array([cell for cell in cells if cell != ""], dtype=np.float64)
    return values


def _header(path: Path, step: str | None) -> tuple[list[str], str, bool]:
    """Names of the columns, what parts them, and whether the file names them itself."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        first = file.readline(WIDEST)
        while first and not first.strip():
            first = file.readline(WIDEST)
    if not first:
        raise ValueError(f"{path} is empty")
    if "\0" in first or first.count("\ufffd") > 3:
        raise ValueError(f"{path} is no text file: give CSV, JSON lines, trainer_state.json or an event file")
    delimiter = max(",\t;|", key=first.count)
    names = [name.strip() for name in next(_rows([first], delimiter), [])]
    if not _are_numbers(names):
        return names, delimiter, True
    numbers = [str(i + 1) for i in range(len(names))]
    if step is None:
        raise ValueError(
            f"{path} has no header line (it begins with {printable(first.strip(), 60)!r}): add one like "
            f"step{delimiter}loss, or give columns by number, --step 1 --metric 2"
        )
    if step != ROW and step not in numbers:
        raise UnknownNameError(f"{path} has no header line; its columns are {listed(numbers)}, not {step!r}")
    return numbers, delimiter, False


def _rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(WIDEST)
    rows = csv.reader(lines, delimiter=delimiter)
    while True:
        try:
            yield from rows
            return
        except csv.Error:
            yield ["?"]  # counted as a line cut short


def _are_numbers(cells: Sequence[str]) -> bool:
    try:
        return bool([float(cell) for cell in cells if cell])
    except ValueError:
        return False


def _is_bound(name: str, known: set[str]) -> bool:
    """Whether this is one of the __MIN and __MAX columns that Weights & Biases writes beside each metric."""
    return name.endswith(("__MIN", "__MAX")) and name[:-5] in known
