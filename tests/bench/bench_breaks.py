"""How well public runs are forecast whose data change half-way, or whose loss blows up and comes back."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from scale_callbacks import LossForecaster
from scale_callbacks.runs import read_runs

CURVES = Path(__file__).parents[1] / "data" / "curves"
CHANGE, SEEN = 0.6, (0.7, 0.9)  # shares of the plan at which the loss changes, and that are then seen
BLOWN, LASTS = 0.5, (0.35, 0.01)  # how much the loss rises, and when, and for how long, in shares of the plan


def measure():
    """Everything here, by name."""
    runs = [run for run in read_runs([CURVES / "loss.npz"]) if run.scored and run.language_model]
    found = {"language models": float(len(runs))}
    for factor in (0.8, 0.95, 1.2):
        found |= told(
            f"losses {factor:g} times as high from {CHANGE:.0%} on", [changed(r, factor) for r in runs]
        )
    return found | told(f"a loss {BLOWN:.0%} too high at {LASTS[0]:.0%}, and back", [blown(r) for r in runs])


def changed(run, factor):
    """The run with other data in its last part."""
    later = run.steps > CHANGE * run.schedule.horizon
    return replace(run, losses=np.where(later, factor * run.losses, run.losses), final=factor * run.final)


def blown(run):
    """The run with a loss that rises at once and comes back."""
    late = np.maximum(run.steps / run.schedule.horizon - LASTS[0], 0.0)
    return replace(run, losses=run.losses * (1.0 + BLOWN * (late > 0.0) * np.exp(-late / LASTS[1])))


def told(name, runs):
    """Median and 90th percentile of |error| in % of the final loss, and % of the intervals that held it."""
    found = {}
    for share in SEEN:
        errors, held, width = [], [], []
        for run in runs:
            forecaster = LossForecaster(run.schedule, steps_per_epoch=run.steps_per_epoch)
            seen = run.steps <= share * run.schedule.horizon
            forecaster.observe(run.steps[seen], run.losses[seen])
            forecast = forecaster.forecast()
            if forecast is not None:
                errors.append(100.0 * abs(forecast.value / run.final - 1.0))
                held.append(forecast.low <= run.final <= forecast.high)
                width.append(100.0 * (forecast.high - forecast.low) / run.final)
        found[f"{name}: median error at {share:.0%}, %"] = float(np.median(errors))
        found[f"{name}: 90th percentile at {share:.0%}, %"] = float(np.quantile(errors, 0.9))
        found[f"{name}: held at {share:.0%}, %"] = 100.0 * float(np.mean(held))
        found[f"{name}: median width at {share:.0%}, %"] = float(np.median(width))
    return found
