"""What waits to be sent to an MLflow run: in the journal first, then in memory, in order."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scale_callbacks.integrations._mlflow_journal import Entry, Journal

BACKLOG = 1000  # entries kept in memory while the store does not answer: several runs' worth

Report = Callable[[str, Exception], None]


class Outbox:
    """A bounded queue of entries, each of them journalled before it is queued.

    A disk that takes no journal is reported, and the entries are sent from memory.

    Args:
        folder: For the journal; None for none.
        head: First line of the journal: plain data without secrets.
        report: Is told what failed.

    Attributes:
        dropped: How many entries were given up, the queue being full. The journal still has them.
    """

    def __init__(self, folder: Path | None, head: Mapping[str, Any], report: Report) -> None:
        self.dropped = 0
        self._journal = None if folder is None else Journal(folder, head)
        self._report = report
        self._waiting: deque[tuple[Entry, int | None]] = deque()
        self._guard = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def path(self) -> Path | None:
        """The journal's file, where there is one."""
        return None if self._journal is None else self._journal.path

    def put(self, entry: Entry) -> None:
        """Write an entry down, and queue it."""
        number = self._journalled("the journal was not written", lambda journal: journal.append(entry))
        with self._guard:
            if len(self._waiting) >= BACKLOG:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append((entry, number))

    def waiting(self) -> list[Entry]:
        """What is to be sent, oldest first."""
        with self._guard:
            return [entry for entry, _ in self._waiting]

    def sent(self, entries: list[Entry]) -> None:
        """Forget what the store has taken: the first entries of `waiting`."""
        number = None
        with self._guard:
            for entry in entries:
                # Else it was dropped meanwhile, the queue being full.
                if self._waiting and self._waiting[0][0] is entry:
                    number = self._waiting.popleft()[1] or number
        if number is not None and not self.dropped:
            mark = number
            self._journalled("the journal was not marked", lambda journal: journal.mark(mark))

    def say(self, **head: Any) -> None:
        """Note in the journal what holds for the whole run."""
        self._journalled("the journal was not written", lambda journal: journal.say(**head))

    def close(self, *, done: bool) -> Path | None:
        """Let go of the journal, and remove it where everything has been sent.

        Args:
            done: Nothing else is to be told to the store either.

        Returns:
            The journal that is left for later, if any.
        """
        path = self.path
        if self._journal is None or path is None:
            return None
        remove = done and not self._waiting and not self.dropped
        self._journal.close(remove=remove)
        return None if remove or not os.path.exists(path) else path

    def _journalled(self, what: str, call: Callable[[Journal], Any]) -> Any:
        if self._journal is None:
            return None
        try:
            return call(self._journal)
        except Exception as fault:
            self._report(what, fault)
            return None
