"""How records reach the sinks: a sink that fails, is slow or hangs holds nobody up."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from scale_callbacks.sinks import Record, Sink, Summary

Fault = tuple[str, BaseException]

PATIENCE = 0.05  # seconds that training waits for the sinks of a forecast, once in vain for each
BACKLOG = 32  # records kept for a sink that does not keep up
STUCK = 1.0  # seconds in one call after which a sink is said to hang
CLOSING = 5.0  # seconds that the end of the run waits for sinks that are still busy


class Delivery:
    """Calls the sinks of one monitor, each on a thread of its own and one call at a time.

    Training waits until the sinks have taken a record, but never longer than 50 ms, and not again for one
    that took longer once: its records are queued from then on, the oldest dropped when it falls 32 behind. A
    sink with `inline = True` is called on the training thread: for those that only put a record somewhere.

    Args:
        sinks: called in this order.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)
        self._couriers = [_Courier(sink) for sink in sinks]

    def __len__(self) -> int:
        return len(self._sinks)

    def __getstate__(self) -> dict[str, Any]:
        return {"_sinks": self._sinks, "_couriers": None}  # threads and locks stay behind

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_sinks"])  # type: ignore[misc]

    def write(self, record: Record, summary: Summary) -> None:
        """Hand a record to every sink; returns within 50 ms whatever they do."""
        until = time.monotonic() + PATIENCE
        for courier in self._couriers:
            courier.take(f"{courier.name} failed to write", courier.sink.write, record, summary)
            courier.await_record(until)

    def close(self, summary: Summary) -> None:
        """Let every sink close, and wait up to five seconds for those that are still busy."""
        until = time.monotonic() + CLOSING
        for courier in sorted(self._couriers, key=lambda courier: courier.inline):
            courier.take(f"{courier.name} failed to close", courier.sink.close, summary, last=True)
        for courier in self._couriers:
            courier.await_end(until)

    def flush(self, seconds: float) -> bool:
        """Wait until the sinks have taken everything; False when the time was too short."""
        until = time.monotonic() + seconds
        return all([courier.idle(until) for courier in self._couriers])

    def faults(self) -> list[Fault]:
        """What went wrong since this was last asked."""
        return [fault for courier in self._couriers for fault in courier.faults()]


class _Courier:
    """One sink, its thread and the calls that wait for it."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.name = type(sink).__name__
        self.inline = bool(getattr(sink, "inline", False))
        self._queue = _Queue()
        self._thread: threading.Thread | None = None
        self._late = False
        self._blamed: float | None = None  # when the call began that was reported as hanging
        weakref.finalize(self, self._queue.end)  # a monitor that is dropped leaves no thread behind

    def take(self, what: str, call: Callable[..., None], *args: Any, last: bool = False) -> None:
        """Call the sink, or queue the call for its thread; what it raises is kept under the words `what`."""
        if self.inline:
            try:
                call(*args)
            except Exception as fault:
                self._queue.faults.append((what, fault))
            return
        self._look_for_hang()
        if self._queue.put(_Call(what, call, args), last=last):
            self._queue.faults.append((f"{self.name} fell behind and missed a forecast", TimeoutError()))
        if self._thread is None or not self._thread.is_alive():  # not alive: the process has forked
            self._thread = threading.Thread(
                target=self._queue.work, name=f"scale-callbacks {self.name}", daemon=True
            )
            self._thread.start()

    def idle(self, until: float) -> bool:
        """Wait until nothing is queued or running; False when that took too long."""
        return self._queue.wait(until)

    def await_record(self, until: float) -> None:
        """Wait for the record just queued, unless an earlier one was waited for in vain."""
        if not self._late and until > time.monotonic() and not self.idle(until):
            self._late = True

    def await_end(self, until: float) -> None:
        """Wait for the sink to close; less long where the same call hangs since before."""
        since = self._queue.since
        patience = until if since is None else min(until, since + CLOSING)
        if not self.idle(patience):
            fault = TimeoutError(f"{len(self._queue)} calls still wait")
            self._queue.faults.append((f"{self.name} hangs and was left behind at the end", fault))

    def faults(self) -> list[Fault]:
        """What went wrong since this was last asked."""
        self._look_for_hang()
        return [self._queue.faults.popleft() for _ in range(len(self._queue.faults))]

    def _look_for_hang(self) -> None:
        since = self._queue.since
        if since is not None and since != self._blamed and time.monotonic() - since > STUCK:
            self._blamed = since
            fault = TimeoutError(f"no return after {STUCK:g} s")
            self._queue.faults.append((f"{self.name} hangs", fault))


class _Call(NamedTuple):
    what: str  # went wrong, should it fail
    function: Callable[..., None]
    arguments: tuple[Any, ...]


class _Queue:
    """Calls to be made one after the other on another thread, which alone runs `work`."""

    def __init__(self) -> None:
        self.since: float | None = None  # when the call under way began
        self.faults: deque[Fault] = deque(maxlen=2 * BACKLOG)
        self._calls: deque[_Call] = deque()
        self._changed = threading.Condition()
        self._ended = False

    def __len__(self) -> int:
        return len(self._calls) + (self.since is not None)

    def put(self, call: _Call, *, last: bool) -> bool:
        """Queue a call; tell whether an older one was dropped for it."""
        with self._changed:
            full = len(self._calls) >= BACKLOG
            if full:
                self._calls.popleft()
            self._calls.append(call)
            self._ended = self._ended or last
            self._changed.notify_all()
            return full

    def end(self) -> None:
        """Let the thread end when it has made all calls."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, until: float) -> bool:
        """Wait until all calls have been made; False when that took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self) == 0, max(0.0, until - time.monotonic()))

    def work(self) -> None:
        """Make the calls as they come: the thread's body."""
        while (call := self._next()) is not None:
            try:
                call.function(*call.arguments)
            except BaseException as fault:  # not even SystemExit may end the thread
                self.faults.append((call.what, fault))
            del call  # else the idle thread keeps a summary alive
            with self._changed:
                self.since = None
                self._changed.notify_all()

    def _next(self) -> _Call | None:
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._ended)
            if not self._calls:
                return None
            self.since = time.monotonic()
            return self._calls.popleft()
