"""What waits to be sent to an MLflow run: in the journal first, then in memory, in order."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scale_callbacks.integrations._mlflow_journal import Entry, Journal

BACKLOG = 1000  # entries kept in memory while the store does not answer: several runs' worth
PATIENCE = 0.05  # seconds that training waits for the disk, and not while an earlier call is under way
STUCK = 1.0  # seconds after which that is said to hang

Report = Callable[[str, Exception], None]


class Outbox:
    """A bounded queue of entries, each of them journalled before it is queued.

    A disk that takes no journal is reported, and the entries are sent from memory; one that hangs holds
    nobody up.

    Args:
        folder: For the journal; None for none.
        head: First line of the journal: plain data without secrets.
        report: Is told what failed.

    Attributes:
        dropped: How many entries were given up, the queue being full. The journal still has them.
    """

    def __init__(self, folder: Path | None, head: Mapping[str, Any], report: Report) -> None:
        self.dropped = 0
        self._scribe = None if folder is None else _Scribe(Journal(folder, head), report)
        self._waiting: deque[_Item] = deque()
        self._guard = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def path(self) -> Path | None:
        """The journal's file, where there is one."""
        return None if self._scribe is None else self._scribe.journal.path

    def put(self, entry: Entry) -> None:
        """Write an entry down, and queue it."""
        item = _Item(entry)
        if self._scribe is not None:
            self._scribe.do("the journal was not written", item.write_down)
        with self._guard:
            if len(self._waiting) >= BACKLOG:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(item)

    def waiting(self) -> list[Entry]:
        """What is to be sent, oldest first."""
        with self._guard:
            return [item.entry for item in self._waiting]

    def sent(self, entries: list[Entry]) -> None:
        """Forget what the store has taken: the first entries of `waiting`."""
        number = None
        with self._guard:
            for entry in entries:
                # Else it was dropped meanwhile, the queue being full.
                if self._waiting and self._waiting[0].entry is entry:
                    number = self._waiting.popleft().number or number
        if self._scribe is not None and number is not None and not self.dropped:
            mark = number
            self._scribe.do("the journal was not marked", lambda journal: journal.mark(mark))

    def say(self, **head: Any) -> None:
        """Note in the journal what holds for the whole run."""
        if self._scribe is not None:
            self._scribe.do("the journal was not written", lambda journal: journal.say(**head))

    def close(self, *, done: bool) -> Path | None:
        """Let go of the journal, and remove it where everything has been sent.

        Args:
            done: Nothing else is to be told to the store either.

        Returns:
            The journal that is left for later, if any.
        """
        path = self.path
        if self._scribe is None or path is None:
            return None
        remove = done and not self._waiting and not self.dropped
        closed = self._scribe.do("the journal was not closed", lambda j: j.close(remove=remove), last=True)
        return path if not closed or (not remove and os.path.exists(path)) else None


class _Item:
    """An entry, and its number in the journal once it is there."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.number: int | None = None

    def write_down(self, journal: Journal) -> None:
        self.number = journal.append(self.entry)


class _Scribe:
    """Writes the journal on a thread of its own, one call after the other: a disk may hang."""

    def __init__(self, journal: Journal, report: Report) -> None:
        self.journal = journal
        self._report = report
        self._calls: queue.Queue[tuple[str, Callable[[Journal], Any], threading.Event] | None]
        self._calls = queue.Queue(BACKLOG)
        self._thread: threading.Thread | None = None
        self._since: float | None = None  # when the call under way began
        self._hangs = False

    def do(self, what: str, call: Callable[[Journal], Any], *, last: bool = False) -> bool:
        """Make a call, in its turn; tell whether it has been made by now.

        Args:
            what: What went wrong, should it fail.
            call: The call.
            last: No other will come; it is given a second.
        """
        since, done = self._since, threading.Event()
        if since is not None and time.monotonic() - since > STUCK and not self._hangs:
            self._hangs = True
            self._report("the journal's disk hangs", TimeoutError(f"no answer in {STUCK:g} s"))
        try:
            self._calls.put_nowait((what, call, done))
            if last:
                self._calls.put_nowait(None)
        except queue.Full:
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="scale-callbacks-journal", daemon=True)
            self._thread.start()
        return done.wait(1.0 if last else PATIENCE if since is None else 0.0)

    def _work(self) -> None:
        while (asked := self._calls.get()) is not None:
            what, call, done = asked
            self._since = time.monotonic()
            try:
                call(self.journal)
            except Exception as fault:
                self._report(what, fault)
            self._since = None
            done.set()
            del asked, call
