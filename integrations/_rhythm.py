"""When windows of the loss end and are read: by the plan alone, so at the same steps on all ranks."""

import sys

from scale_callbacks.due import forecast_steps

NEVER = sys.maxsize
UNREAD = 32  # windows kept on the device before they are read, forecast or not


class Rhythm:
    """The windows of a training, one after the other; what a rank has made of their losses changes nothing.

    Args:
        horizon: last step of the plan.
        every: optimizer steps of a window.
        step: where the first begins.

    Attributes:
        every: as given.
        began: where the window at hand begins.
        end: where it ends; `NEVER` where there are no windows.
    """

    def __init__(self, horizon: int, every: int, step: int) -> None:
        self.end = 0
        self.follow(horizon, every, step)
        self.begin(step)

    def begin(self, step: int) -> None:
        """A window begins at this step."""
        self.began, self.end = step, self._after(step)

    def follow(self, horizon: int, every: int, step: int) -> None:
        """Follow another plan from this step on; the window at hand goes on."""
        self.every, self._horizon, self._due = every, horizon, forecast_steps(horizon)
        if self.end != NEVER:
            self.end = self._after(step)

    def stop(self) -> None:
        """Have no windows from here on."""
        self.end = NEVER

    def due(self, step: int) -> bool:
        """Tell whether a forecast is due once the window at hand has ended at this step."""
        before, until = self._due.searchsorted((self.began, step), side="right")
        return bool(before < until or step >= self._horizon)

    def _after(self, step: int) -> int:
        """The end of the window that begins at a step: windows end on multiples, and on the horizon."""
        end = (step // self.every + 1) * self.every
        return self._horizon if step < self._horizon < end else end
