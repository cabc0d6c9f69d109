"""Checks of what users set on a callback, the same for every framework."""

from collections.abc import Sequence

from scale_callbacks.schedule import Schedule
from scale_callbacks.sinks import Sink


def check(
    monitor: str,
    *,
    horizon: int | None = None,
    schedule: Schedule | None = None,
    level: float = 0.9,
    sinks: Sequence[Sink] = (),
) -> None:
    """Refuse settings that cannot work, at once rather than in training.

    Raises:
        ValueError: an empty name, horizon below 1 or other than the schedule's, level outside (0, 1).
        TypeError: a schedule that is no `Schedule`, a sink that is none.
    """
    if not isinstance(monitor, str) or not monitor:
        raise ValueError(f"monitor={monitor!r} must be the name of a logged metric, for instance 'loss'")
    if horizon is not None and (isinstance(horizon, bool) or int(horizon) != horizon or horizon < 1):
        raise ValueError(f"horizon={horizon!r} must be a whole number of optimizer steps, 1 or more")
    if schedule is not None and not isinstance(schedule, Schedule):
        raise TypeError(f"schedule={schedule!r} must be a Schedule: leave it out to use the live scheduler")
    if schedule is not None and horizon is not None and horizon != schedule.horizon:
        raise ValueError(f"horizon={horizon} is not the schedule's {schedule.horizon}: give one of them")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level={level!r} must lie between 0 and 1, for instance 0.9")
    for sink in sinks:
        if not isinstance(sink, Sink):
            raise TypeError(f"sink {sink!r} has no methods write(record, summary) and close(summary)")
