"""Collects a loss on the device, and reads its means over all ranks: the only place that waits for either."""

from collections.abc import Callable, Sequence
from itertools import takewhile

import torch

from scale_callbacks.integrations._ranks import Mean, Ranks
from scale_callbacks.integrations.torch import LossWindow


class Collector:
    """Windows of losses on each rank, read together.

    Args:
        ranks: all of them.
        fail: told of what goes wrong here.

    Attributes:
        add: takes one loss without waiting for its device.
        failed: this rank has failed: it goes on taking part, so that no other waits for it.
        ended: a rank has failed, or cannot be reached, and all know.
    """

    def __init__(self, ranks: Ranks, fail: Callable[[Exception], None]) -> None:
        self._ranks = ranks
        self._fail = fail
        self._window = LossWindow()
        self._unread: list[tuple[int, int, bool]] = []  # of each window closed: step, span, had we failed?
        self.add = self._window.add
        self.failed = False
        self.ended = False

    @property
    def unread(self) -> int:
        """How many windows were closed and not read yet: the same number on all ranks."""
        return len(self._unread)

    def close(self, step: int, span: int) -> None:
        """Close the window of the last `span` steps without waiting for its device; a new one begins."""
        self._unread.append((step, span, self.failed))
        self._window.close()

    def closed(self, *, together: bool = True) -> list[tuple[int, int, Mean]]:
        """Read the windows that were closed, up to the failure of a rank: (step, span, mean over all ranks).

        Args:
            together: all ranks are asked at this moment; else this one speaks for all.
        """
        unread, self._unread = self._unread, []
        means = self._means(self._window.closed, [failed for *_, failed in unread], together=together)
        read = [(step, span, mean) for (step, span, _), mean in zip(unread, means, strict=True)]
        return list(takewhile(lambda one: not one[2].failed, read))

    def read(self, value: torch.Tensor | None = None) -> tuple[Mean, Mean]:
        """Read the window and a further value, as means over all ranks; a new window begins."""

        def give() -> torch.Tensor:
            one = LossWindow()
            if value is not None:
                one.add(value)
            return torch.stack([window.take().to(self._ranks.device) for window in (self._window, one)])

        window, further = self._means(give, [self.failed] * 2)
        return window, further

    def _means(
        self, give: Callable[[], torch.Tensor], failed: list[bool], *, together: bool = True
    ) -> list[Mean]:
        """What `give` gives of so many windows, in one all-reduce at steps that all ranks share."""
        if not failed:
            return []
        device = self._ranks.device
        sums = torch.zeros(len(failed), 3, device=device)
        try:
            sums = give().to(device)
        except Exception as fault:  # the others wait for us
            self._fail(fault)
            failed = [True] * len(failed)
        flags = torch.tensor(failed, dtype=sums.dtype, device=device)
        numbers = torch.cat((sums, flags[:, None]), dim=1).flatten()
        flat = self._ranks.sum(numbers) if together else numbers.tolist()
        means = [Mean(*flat[i : i + 4]) for i in range(0, len(flat), 4)]
        self.ended |= any(mean.failed for mean in means)
        return means

    def forget(self, *, window: bool) -> None:
        """Forget the windows that were closed, and what the one at hand holds where that is asked for."""
        self._unread = []
        self._window.closed()
        if window:
            self._window.reset()

    def totals(self, *, together: bool) -> list[list[float]]:
        """What the windows hold, of all ranks where these are asked together, else of this one."""
        own = torch.zeros(3)
        try:
            own = self._window.totals()
        except Exception as fault:  # the others wait for us
            self._fail(fault)
        return self._ranks.gather(own) if together else [own.tolist()]

    def restore(self, saved: Sequence[Sequence[float]]) -> None:
        """Go on with the windows that `totals` gave."""
        self._window.restore(self._ranks.share_of(saved))
