"""Processes that train together agree on a decision or a mean, and wait for a lost one at most once."""

import itertools
import logging
import math
import threading
import time
import weakref
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

_log = logging.getLogger("scale_callbacks")

_numbers = itertools.count()  # agreements are told apart by the order in which they are made
_GIVEN_UP = -(2**40)  # a count of arrivals that no later arrival makes positive
_PAUSE = 0.01  # seconds between two looks at who has arrived
_BROADCAST, _CONFIRM, _MEAN = 1.0, 2.0, 3.0


class Agreement:
    """What processes that train together agree on, over a gloo group of its own with a short timeout.

    Make one on every rank or on none, and ask only at steps that all ranks share. The group is made at the
    first question. Where no process group is initialised, or one of a single process, every answer is local
    and free.

    A rank that waits longer than the timeout, or loses a peer, is off for good: it reports that once, and
    answers locally from then on. Its peers notice at their next question, without waiting. So a peer that
    never comes costs one timeout in a whole run. A yes is given only after a second round in which every rank
    has confirmed that it got the same answer, so that no rank stops alone.

    The group is not registered with `torch.distributed`, whose names for groups count the calls of
    `new_group`: one that only some ranks have made would confuse the user's own.

    Args:
        timeout: seconds a rank waits for the others, above 0.

    Raises:
        ValueError: the timeout is not above 0.

    Attributes:
        off: whether a fault or `close` has ended the agreement.
        faults: how many faults there were.
    """

    def __init__(self, *, timeout: float = 10.0) -> None:
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout={timeout!r} must be a number of seconds above 0, for instance 10")
        self.timeout = timeout
        self.off = False
        self.faults = 0
        self._group: list[Any] = []  # empty, or the group
        self._number = next(_numbers)
        self._see_to_the_end()

    def broadcast(self, want: bool) -> bool:
        """Say on every rank what rank 0 wants; False after a fault."""
        if self._alone():
            return want and not self.off
        mine = float(want and dist.get_rank() == 0)
        wanted = self._sums(_BROADCAST, mine)
        if wanted is None or not wanted[0]:
            return False
        return self._sums(_CONFIRM) is not None

    def mean(self, value: float) -> float:
        """Mean of a value over the ranks on which it is finite (NaN where it is on none).

        After a fault: the local value.
        """
        value = float(value)
        if self._alone():
            return value
        finite = math.isfinite(value)
        sums = self._sums(_MEAN, value if finite else 0.0, float(finite))
        if sums is None:
            return value
        return sums[0] / sums[1] if sums[1] else math.nan

    def close(self) -> None:
        """Leave: answers are local from now on, and peers that still ask are told so at once."""
        self.off = True
        self._group.clear()  # closes its connections

    def __getstate__(self) -> dict[str, Any]:
        # A copy, made on one rank perhaps, must not take part in the conversation of the original.
        return {**self.__dict__, "_group": [], "off": self.off or bool(self._group)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _number=next(_numbers))
        self._see_to_the_end()

    def _see_to_the_end(self) -> None:
        """Part from the group before the interpreter ends.

        Its thread may still be about to let go of the last answer, for which it needs the interpreter: where
        that has ended, torch (2.13) aborts the process.
        """
        weakref.finalize(self, self._group.clear)

    def _alone(self) -> bool:
        return self.off or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1

    def _sums(self, question: float, *values: float) -> list[float] | None:
        """Add up over ranks; None after a fault. No rank gets an answer before all have asked."""
        try:
            if not self._group:
                self._group.append(self._meet())
            numbers = torch.tensor([question, *values, *[0.0] * (2 - len(values))], dtype=torch.float64)
            self._group[0].allreduce([numbers]).wait()
            asked, *sums = numbers.tolist()
            if asked != question * dist.get_world_size():
                raise RuntimeError("the ranks asked different questions: they are not at the same step")
            return sums
        except Exception as fault:
            self.faults += 1
            self.close()
            _log.warning(
                "the ranks cannot agree (%s: %s): no decision is shared any more, training goes on",
                type(fault).__name__,
                str(fault).splitlines()[0] if str(fault) else "no message",
            )
            return None

    def _meet(self) -> Any:
        """Make the group in a thread of its own, since not every call of a store can be given a timeout."""
        made: list[Any] = []

        def make() -> None:
            try:
                made.append(_gloo_group(self._number, self.timeout))
            except Exception as fault:
                made.append(fault)

        thread = threading.Thread(target=make, name="scale-callbacks-agreement", daemon=True)
        thread.start()
        thread.join(3 * self.timeout)  # to arrive, to connect, and once more for a busy machine
        if not made:
            raise TimeoutError(f"the store of the process group did not answer within {3 * self.timeout:g} s")
        if isinstance(made[0], Exception):
            raise made[0]
        return made[0]


def _gloo_group(number: int, timeout: float) -> Any:
    """Wait until all ranks are here, then connect them.

    Connecting at once would do as well, but for a rank that comes too late: it would wait a timeout for ranks
    that have given up.
    """
    from torch.distributed.distributed_c10d import PrefixStore, ProcessGroupGloo, _get_default_store

    rank, world = dist.get_rank(), dist.get_world_size()
    store = PrefixStore(f"scale_callbacks/agreement/{number}/", _get_default_store())
    until = time.monotonic() + timeout
    here = store.add("here", 1)
    while here < world:
        if here < 0:
            raise TimeoutError("another rank has given up waiting")
        if time.monotonic() > until:
            store.add("here", _GIVEN_UP)
            raise TimeoutError(f"{here} of {world} ranks came within {timeout:g} s")
        time.sleep(_PAUSE)
        here = store.add("here", 0)
    return ProcessGroupGloo(store, rank, world, timedelta(seconds=timeout))
