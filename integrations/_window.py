"""LossWindow: a loss whose mean is wanted of some steps, kept on its device until it is asked for."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from operator import length_hint
from typing import Any

import torch
import torchmetrics

AT_HAND = frozenset({"cpu"})  # types of devices whose values can be had without waiting


class LossWindow(torchmetrics.Metric):
    """Running mean of a loss that stays on its device until it is asked for.

    `add` is one in-place copy into a slot; the slots are added up, and what is not finite is counted instead,
    when they are full or the window is read. So a step costs one small kernel (on the CPU none: the number is
    taken), and one NaN does not spoil a window. The states are sums, so torchmetrics reduces them over ranks
    in `compute`, or an adapter in one go through `totals`. `close` begins a new window and leaves the losses
    of the one before where they are, so that the totals of many windows are read in one go, by `closed`.

    Args:
        slots: values of a window that are kept before they are added up.
        kwargs: settings of `torchmetrics.Metric`.

    >>> window = LossWindow()
    >>> for loss in (1.0, float("nan"), 3.0):
    ...     window.add(torch.tensor(loss))
    >>> window.compute().item(), window.totals().tolist()
    (2.0, [4.0, 2.0, 1.0])
    """

    full_state_update = False
    sums: torch.Tensor  # of the finite losses, their count, and the count of the others

    def __init__(self, *, slots: int = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(3), dist_reduce_fx="sum")
        self._slots = _Slots(slots)
        self._closed: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor) -> None:
        """Take one loss (the mean of a tensor of several) without waiting for its device."""
        slot = next(self._slots.free, None)
        if slot is None:
            slot = self._make_room(loss)
        if loss.dim():
            loss = loss.mean()
        if isinstance(slot, int):
            self._slots.values[slot] = loss.tolist()  # a number; by `item` it takes longer
        else:
            slot.copy_(loss.detach() if loss.requires_grad else loss)

    def update(self, loss: torch.Tensor) -> None:
        """Take one loss the torchmetrics way; `add` does the same at less cost."""
        self.add(loss)

    def compute(self) -> torch.Tensor:
        """Mean of the finite losses, NaN when there is none."""
        self._fold()
        return self.sums[0] / self.sums[1]

    def totals(self) -> torch.Tensor:
        """Sum of the finite losses, their count, and the count of the others: one tensor, on the device."""
        self._fold()
        return self.sums.clone()

    def take(self) -> torch.Tensor:
        """The totals; a new window begins."""
        totals = self.totals()
        self.sums.zero_()
        return totals

    def close(self) -> None:
        """Begin a new window; `closed` will give the totals of the one that ends."""
        self.__dict__["_computed"] = None  # not by torch's `__setattr__`, which costs as much as an `add`
        if not self._slots.close():
            self._fold()

    def closed(self) -> torch.Tensor:
        """(windows, 3): totals of the windows closed since this was last asked, on the device."""
        self._fold()
        closed, self._closed = self._closed, []
        closed = [totals.to(self.sums.device) for totals in closed]
        return torch.cat(closed) if closed else self.sums.new_zeros(0, 3)

    def restore(self, totals: Iterable[float]) -> None:
        """Continue a window from what `totals` gave."""
        self.reset()
        self._update_count = 1
        self.sums.copy_(torch.tensor([float(value) for value in totals]))

    def reset(self) -> None:
        """Begin a new window, and forget those that were closed."""
        self._slots.seen()
        self._closed = []
        super().reset()

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Reduce over ranks; called by torchmetrics."""
        self._fold()
        super().sync(*args, **kwargs)

    def _make_room(self, loss: torch.Tensor) -> torch.Tensor | int:
        self._fold()
        self._update_count += 1
        self._computed = None
        if self._slots.device != loss.device:
            self.to(loss.device)
            self._slots.move(loss.device)
        self._slots.give(0)
        return next(self._slots.free)

    def _fold(self) -> None:
        """Add up what is in the slots."""
        seen, ends = self._slots.seen()
        if ends == [0]:
            return
        totals = _totals(seen, ends)
        totals[0] += self.sums
        self._closed.append(totals[:-1])
        self.sums = totals[-1]  # of the window at hand

    def __getstate__(self) -> dict[str, Any]:
        self._fold()
        return {**super().__getstate__(), "_slots": _Slots(self._slots.size)}


def _totals(losses: torch.Tensor, ends: list[int]) -> torch.Tensor:
    """(windows, 3): sum of the finite losses, their count, that of the others, of windows that end there."""
    spans = list(pairwise((0, *ends)))
    if losses.device.type in AT_HAND:
        sums = [losses[a:b].sum().item() for a, b in spans]
        if all(map(math.isfinite, sums)):  # then all are: the usual case
            return losses.new_tensor([(total, b - a, 0.0) for total, (a, b) in zip(sums, spans, strict=True)])
    finite, values = losses - losses == 0.0, losses.nan_to_num(0.0, 0.0, 0.0)
    rows = []
    for a, b in spans:
        count = finite[a:b].sum()
        rows.append(torch.stack((values[a:b].sum(), count, b - a - count)))
    return torch.stack(rows)


class _Slots:
    """Where losses wait on their device; apart from the metric, whose attributes cost more than a copy.

    A window has `size` slots in a row, whatever the windows before it have left, so that how its values are
    added up does not hang on those. On the host, which nothing waits for, slots are places in a list.

    Attributes:
        size: slots of a window.
        device: where they are.
        free: those that may be filled next.
        values: what was put into slots on the host.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.device: torch.device | None = None
        self.free: Iterator[torch.Tensor | int] = iter(())
        self.values: list[Any] = []
        self._buffer = torch.zeros(0)
        self._slots: Sequence[torch.Tensor | int] = ()
        self._ends: list[int] = []  # of the windows that were closed
        self.give(0)

    def give(self, start: int) -> None:
        """The slots from there on may be filled next."""
        given = self._slots[start : start + self.size]
        self._end, self.free = start + len(given), iter(given)

    def move(self, device: torch.device) -> None:
        """Wait on another device."""
        self.device, count = device, 2 * self.size
        self._buffer = torch.zeros(count, device=device)
        self.values = [0.0] * count if device.type in AT_HAND else []
        self._slots = range(count) if self.values else self._buffer.unbind()

    def close(self) -> bool:
        """Begin a new window; tell whether there is room for it."""
        used = self._end - length_hint(self.free)
        self._ends.append(used)
        if used:
            self.give(used)
        return used <= self.size

    def seen(self) -> tuple[torch.Tensor, list[int]]:
        """What was filled since it was last asked for, and where each window ends in it, the last at hand."""
        ends = [*self._ends, self._end - length_hint(self.free)]
        self._ends, self._end, self.free = [], 0, iter(())
        if self.values:
            return torch.tensor(self.values[: ends[-1]], dtype=self._buffer.dtype), ends
        return self._buffer[: ends[-1]], ends
