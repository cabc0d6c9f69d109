"""How often `TargetRule` gives up runs that end better or worse than a target, asked at every forecast."""

from pathlib import Path

import numpy as np

from scale_callbacks import LossForecaster
from scale_callbacks.due import forecast_steps
from scale_callbacks.forecast import Status
from scale_callbacks.runs import read_runs
from scale_callbacks.target import TargetRule, chance_of

CURVES = Path(__file__).parents[1] / "data" / "curves"
RULE = TargetRule(0.0)  # for what it takes where nothing is said
TARGETS = (-0.05, -0.02, -0.01, 0.01, 0.02, 0.05)  # over the run's own final loss


def measure():
    """Everything here, by name."""
    found = {}
    groups = {"language models": "loss", "short runs": "small", "runs of several epochs": "epochs"}
    for group, bundle in groups.items():
        runs = [run for run in read_runs([CURVES / f"{bundle}.npz"]) if run.scored and run.language_model]
        told = [forecasts(run) for run in runs]
        found[group] = float(len(runs))
        for target in TARGETS:
            ends = [given_up(run, rows, target) for run, rows in zip(runs, told, strict=True)]
            stopped = [end for end in ends if end is not None]
            what = f"{group} that end {abs(target):.0%} {'above' if target < 0 else 'below'} a target"
            found[f"{what}, given up, %"] = 100.0 * len(stopped) / len(ends)
            if stopped:
                found[f"{what}, when, % of the plan (median)"] = 100.0 * float(np.median(stopped))
    return found


def forecasts(run):
    """Share of the plan and forecast, at each step at which one is due."""
    forecaster, start, rows = LossForecaster(run.schedule, steps_per_epoch=run.steps_per_epoch), 0, []
    for step in forecast_steps(run.schedule.horizon).tolist():
        end = int(np.searchsorted(run.steps, step, side="right"))
        if end > start:
            forecaster.observe(run.steps[start:end], run.losses[start:end])
            start, forecast = end, forecaster.forecast()
            if forecast is not None and forecast.status in (Status.OK, Status.EARLY):
                rows.append((step / run.schedule.horizon, forecast))
    return rows


def given_up(run, rows, target):
    """Share of the plan at which the run is given up; None where it is not."""
    aim = run.final * (1.0 + target)
    late = (row for row in rows if row[0] >= RULE.earliest)
    return next((at for at, f in late if chance_of(aim, f, rises=False) <= 1.0 - RULE.confidence), None)
