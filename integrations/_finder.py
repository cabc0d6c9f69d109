"""Finds out, together with the other ranks, where the monitored value of a Lightning training comes from."""

from collections.abc import Callable
from typing import Any

from scale_callbacks.integrations._outlet import Notes
from scale_callbacks.integrations._ranks import Ranks
from scale_callbacks.integrations._source import Source, Tap, UnknownMetricError

GRACE = 64  # optimizer steps in which a module may log a name for the first time


class Finder:
    """Looks for a source that is still open; all ranks take the same one, at steps they share.

    Looked is at the first batch, after 2, 4, 8, ... steps, at validations and at ends of epochs. A name that
    nothing logs is refused within the first 64 steps; later on it is only warned of.

    Args:
        tap: what the trainer shows on this rank.
        ranks: all of them.
        note: told of a name that is waited for.
        fail: told of what goes wrong here.
        first: optimizer step at which the watch begins.

    Attributes:
        due: optimizer step at which to look next.
    """

    def __init__(
        self, tap: Tap, ranks: Ranks, note: Notes, fail: Callable[[Exception], None], first: int
    ) -> None:
        self.due = 0
        self._tap, self._ranks, self._note, self._fail = tap, ranks, note, fail
        self._first = first

    def at_batch(self, outputs: Any, step: int) -> tuple[Source, bool]:
        """The source, and whether the value at hand is certain to be this batch's.

        Raises:
            UnknownMetricError: the names have settled without ours.
        """
        since = step - self._first
        self.due = step + max(since, 1)
        settled = GRACE <= since < 2 * GRACE  # later on no training is ended for a name
        return self._agree(lambda: self._tap.guess_at_batch(outputs, settled=settled)), since <= 1

    def at_validation(self) -> Source:
        """The source, after a validation."""
        return self._agree(self._tap.guess_at_validation)

    def at_epoch_end(self) -> Source:
        """The source, when an epoch ends and hooks of others may still log."""
        return self._agree(lambda: self._tap.guess_at_epoch_end(last=False))

    def after_epoch(self, step: int) -> Source:
        """The source, when all has been logged of an epoch that ended at this step.

        Raises:
            UnknownMetricError: nothing logs our name, and the training has only begun.
        """
        source = self._agree(lambda: self._tap.guess_at_epoch_end(last=True))
        if source is Source.OPEN and step - self._first <= GRACE:
            source = self._agree(lambda: self._tap.guess_at_batch(None, settled=True))
        if source is Source.OPEN and self._tap.everything_was_logged():
            self._note(f"{self._tap.unknown()}; waiting for it")
        return source

    def _agree(self, look: Callable[[], Source]) -> Source:
        try:
            guess = look()
        except Exception as fault:
            self._fail(fault)
            guess = Source.OPEN
        agreed = Source(self._ranks.highest(int(guess), len(Source)))
        if agreed is Source.UNKNOWN:
            raise UnknownMetricError(self._tap.unknown())
        return agreed
