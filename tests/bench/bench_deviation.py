"""How often a public run is told to have left its forecast band: as it was, and with its loss raised."""

import logging
from pathlib import Path

from scale_callbacks import LossForecaster, Monitor
from scale_callbacks.runs import read_runs

CURVES = Path(__file__).parents[1] / "data" / "curves"
EVERY = 3  # of the runs that are scored elsewhere
BREAK, SOON = 0.5, 0.1  # share of the plan at which the loss is raised, and within which it should be told


def measure():
    """Everything here, by name."""
    logging.getLogger("scale_callbacks").setLevel(logging.CRITICAL)
    runs = [run for run in read_runs([CURVES / "loss.npz", CURVES / "small.npz"]) if run.scored][::EVERY]
    alarms = {raised: [first_alarm(run, raised) for run in runs] for raised in (0.0, 0.05, 0.1, 0.2)}
    found = {"runs": float(len(runs))}
    found["told of a run as it was, %"] = percent(alarm is not None for alarm in alarms.pop(0.0))
    for raised, told in alarms.items():
        soon = [alarm is not None and BREAK < alarm <= BREAK + SOON for alarm in told]
        found[f"told within a tenth of the plan of a loss raised by {raised:.0%}, %"] = percent(soon)
    return found


def first_alarm(run, raised):
    """Share of the plan at which the loss is first told to be above its band (after the break)."""
    horizon = run.schedule.horizon
    monitor = Monitor(LossForecaster(run.schedule, steps_per_epoch=run.steps_per_epoch))
    for step, loss in zip(run.steps.tolist(), run.losses.tolist(), strict=True):
        late = step > BREAK * horizon
        if raised and step > (BREAK + SOON) * horizon:
            return None
        monitor.observe(step, loss * (1.0 + raised) if late else loss)
        away = monitor.deviation
        if away is not None and away.outside and away.score > 0 and (late or not raised):
            return step / horizon
    return None


def percent(answers):
    """Share of the true ones."""
    answers = list(answers)
    return 100.0 * sum(answers) / len(answers)
