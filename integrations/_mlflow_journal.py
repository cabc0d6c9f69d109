"""The journal: what is to be sent to an MLflow run, in a file first, so that it outlives the process.

One file for each start of a run, of JSON lines, each written in one call:

    {"head": {"store": "http://host:5000", "run_id": "3f2a...", "settings": {...}, ...}}
    {"n": 1, "entry": {"milliseconds": 1760000000000, "step": 10, "metrics": {...}, "tags": {...}}}
    {"sent": 1}

Later heads add to earlier ones. What the store has taken is marked as sent; a file of which everything was
sent is removed. While a process writes it the file is locked, where the file system can do that.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import math
import os
import secrets
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from scale_callbacks.integrations._mlflow_text import file_label

_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None  # else: no locks

LIMIT = 4_000_000  # bytes a file may grow to: thousands of forecasts, where a run makes fifty
COMPACT = 500_000  # bytes from which what has been sent is cut away

mine: set[Path] = set()  # open in this process: locks do not tell a process from itself


@dataclass(frozen=True)
class Entry:
    """What is to be sent of one forecast, as plain data: with its own time, so that it may be sent late.

    It may be sent twice, too: a metric that the run has at that step already is left out.

    Attributes:
        milliseconds: since 1970, when the forecast was made.
        step: optimizer step.
        metrics: finite numbers under names that MLflow takes.
        tags: the run's state at this step.
    """

    milliseconds: int
    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """What a journal holds.

    Attributes:
        head: where the run is, its settings, and how it ended.
        entries: what is not marked as sent, in order.
        last: number of the last entry.
        broken: lines that could not be read.
    """

    head: Mapping[str, Any]
    entries: tuple[Entry, ...]
    last: int
    broken: int


class Journal:
    """Writes one journal. Its methods raise `OSError` where the disk does not take what they write.

    Args:
        folder: Made when missing, readable for its owner alone.
        head: What the first line is to say: plain data without secrets.

    Attributes:
        path: The file; None before the first entry, and when it is closed.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any]) -> None:
        self.path: Path | None = None
        self._folder = folder
        self._head = dict(head)
        self._file: IO[bytes] | None = None
        self._size = self._n = self._sent = 0
        self._closed = False
        self._guard = threading.RLock()  # the training thread appends, the sink's marks

    def append(self, entry: Entry) -> int:
        """Write an entry down.

        Returns:
            Its number, for `mark`.
        """
        with self._guard:
            self._n += 1
            if self._file is None:
                self._open()
            self._write({"n": self._n, "entry": vars(entry)})
            return self._n

    def say(self, **head: Any) -> None:
        """Add to the head. Once the run has an id the file is named after it."""
        with self._guard:
            self._head |= head
            if self._file is None or self.path is None:
                return
            self._write({"head": head})
            if "run_id" in head:
                self._rename(_new_path(self._folder, self._head))

    def mark(self, n: int) -> None:
        """Note that the store has taken the entries up to this number."""
        with self._guard:
            self._sent = n
            if self._file is None or self._file.closed:  # closed: the interpreter ends
                return
            if self._sent == self._n and self._size > COMPACT:
                self._start_over()
            else:
                self._write({"sent": n})

    def close(self, *, remove: bool) -> None:
        """Let go of the file, so that others may send what it holds; or remove it, everything being sent."""
        with self._guard, contextlib.suppress(OSError):
            path, self._file, self.path, self._closed = self.path, None, None, True
            if path is None:
                return
            if remove:
                path.unlink(missing_ok=True)
            self._let_go()

    def _open(self) -> None:
        if self._closed:
            raise OSError("the journal is closed")
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = _new_path(self._folder, self._head)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o600)
        self._file, self.path = open(descriptor, "ab", buffering=0), path  # noqa: SIM115
        self._keep(path)
        _lock(self._file)
        try:
            self._write({"head": self._head})
        except OSError:  # without a head it would be of no use
            self._file = self.path = None
            self._let_go()
            path.unlink(missing_ok=True)
            raise

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        if self._size + len(data) > LIMIT:
            raise OSError(f"the journal {self.path} has {LIMIT:,} bytes")
        written = self._file.write(data)
        if written != len(data):
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise OSError(f"the disk is full: {self.path}")
        self._size += len(data)

    def _start_over(self) -> None:
        assert self._file is not None
        self._file.truncate(0)
        self._size = 0
        self._write({"head": self._head})

    def _rename(self, path: Path) -> None:
        assert self.path is not None
        with contextlib.suppress(OSError):  # Windows: not while it is open; its head names the run, too
            self.path.rename(path)
            mine.discard(self.path)
            self.path = path
            self._let_go.detach()
            self._keep(path)

    def _keep(self, path: Path) -> None:
        assert self._file is not None
        mine.add(path)
        self._let_go = weakref.finalize(self, _release, self._file, path)


def read_journal(file: IO[bytes]) -> Contents:
    """Read a journal; lines cut off or otherwise broken are counted and passed over."""
    head: dict[str, Any] = {}
    entries: dict[int, Entry] = {}
    sent = broken = 0
    for line in file:
        try:
            data = json.loads(line)
            if "entry" in data:
                entries[int(data["n"])] = _checked(data["entry"])
            elif "sent" in data:
                sent = max(sent, int(data["sent"]))
            else:
                head |= data["head"]
        except (ValueError, TypeError, KeyError, AttributeError):
            broken += bool(line.strip())
    left = tuple(entry for n, entry in sorted(entries.items()) if n > sent)
    return Contents(head, left, max(entries, default=0), broken)


@contextlib.contextmanager
def held(path: Path) -> Iterator[tuple[IO[bytes], bool] | None]:
    """Open a journal that nobody writes to.

    Yields:
        The file and whether it is certain that it may be removed; None while somebody writes to it.
    """
    if path in mine:  # closing another handle would let go of our own lock
        yield None
        return
    file: IO[bytes]
    try:
        file = path.open("r+b")
    except OSError as fault:
        if fault.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        file = path.open("rb")  # to be read, at least
    with file:
        locked = _lock(file) if file.writable() else None
        yield None if locked is False else (file, locked is True)


def _new_path(folder: Path, head: Mapping[str, Any]) -> Path:
    label = file_label(head["run_id"]) if head.get("run_id") else f"new-{file_label(str(head.get('token')))}"
    return folder / f"{label}.{secrets.token_hex(4)}.jsonl"


def _release(file: IO[bytes], path: Path) -> None:
    """Let go of a journal; also when the one who wrote it is dropped, or the interpreter ends."""
    mine.discard(path)
    file.close()


def _checked(data: Mapping[str, Any]) -> Entry:
    metrics = {str(key): float(value) for key, value in data["metrics"].items()}
    if not all(math.isfinite(value) for value in metrics.values()):
        raise ValueError("not finite")
    tags = {str(key): str(text) for key, text in data["tags"].items()}
    return Entry(int(data["milliseconds"]), int(data["step"]), metrics, tags)


def _lock(file: IO[bytes]) -> bool | None:
    """Lock a file; False where another process has it, None where the file system knows no locks."""
    if _fcntl is None:
        return None
    try:
        _fcntl.lockf(file, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True
