"""Collects a loss on the device, and reads its mean over all ranks: the only place that waits for either."""

from collections.abc import Callable, Sequence

import torch

from scale_callbacks.integrations._ranks import Mean, Ranks
from scale_callbacks.integrations.torch import LossWindow


class Collector:
    """One window of losses on each rank, read together.

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
        self.add = self._window.add
        self.failed = False
        self.ended = False

    def read(self, value: torch.Tensor | None = None) -> tuple[Mean, Mean]:
        """Read the window and a further value, as means over all ranks; a new window begins.

        One all-reduce of seven numbers, at steps that all ranks share.
        """
        device = self._ranks.device
        parts = [torch.zeros(3, device=device)] * 2
        try:
            parts[0] = self._window.take().to(device)
            if value is not None:
                one = LossWindow()
                one.add(value)
                parts[1] = one.totals().to(device)
        except Exception as fault:
            self._fail(fault)
        failed = torch.full((1,), float(self.failed), device=device)
        numbers = self._ranks.sum(torch.cat((*parts, failed)))
        self.ended |= numbers[6] > 0
        return Mean(*numbers[:3]), Mean(*numbers[3:6])

    def reset(self) -> None:
        """Begin a new window."""
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
