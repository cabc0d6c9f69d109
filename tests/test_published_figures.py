"""The laws against figures that papers have published about them."""

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import least_squares

from scale_callbacks.laws.base import plan_of
from scale_callbacks.laws.multi_power import MultiPower
from scale_callbacks.runs import read_runs

LOSS = Path(__file__).parent / "data" / "curves" / "loss.npz"
FITTED = "cosine_24000", "constant_24000", "wsdcon_9"
PREDICTED = "constant_72000", "cosine_72000", "wsd_20000_24000", "wsdld_20000_24000", "wsdcon_3", "wsdcon_18"


def multi_power_law(log_parameters, run, unit):
    """L = L0 + A S1^-alpha - B LD(C, beta, gamma), with areas in `unit`, on our own tables of LD."""
    low, a, alpha, b, speed, beta, gamma = np.exp(log_parameters)
    plan = plan_of(run.schedule)
    total = run.schedule.area(run.schedule.horizon) / unit
    tables = MultiPower((speed * total,), ((gamma, 1.0),), beta)(plan).features
    to_come = tables[0] if len(tables) else np.zeros(len(plan.steps))
    drop = to_come[0] - np.interp(run.steps, plan.steps, to_come)
    area = np.interp(run.steps, plan.steps, np.maximum(plan.area * total, 1e-9))
    return low + a * area**-alpha - b * drop


@pytest.mark.parametrize(("size", "published"), [("25M", 0.0038), ("100M", 0.0044)])
def test_the_multi_power_law_predicts_other_schedules_as_well_as_its_paper_says(size, published):
    """Fitted to three schedules it predicts six others: mean absolute error, Luo et al. 2025, table 2."""
    runs = {run.name.removeprefix(f"MultiPowerLaw/{size}_"): run for run in read_runs([LOSS])}
    unit = runs["cosine_24000"].schedule.area(24_000)
    fitted = [runs[name] for name in FITTED]

    def residuals(p):
        return np.concatenate(
            [np.log(np.maximum(multi_power_law(p, run, unit), 0.1) / run.losses) for run in fitted]
        )

    starts = [np.log([2.8, 0.4, alpha, 0.15, c, 0.5, 0.6]) for c in (300, 3000) for alpha in (0.4, 0.6)]
    fits = [least_squares(residuals, p, loss="soft_l1", f_scale=1e-3, max_nfev=200) for p in starts]
    best = min(fits, key=lambda fit: fit.cost).x
    errors = [
        np.abs(multi_power_law(best, runs[name], unit) - runs[name].losses).mean() for name in PREDICTED
    ]
    assert np.mean(errors) == pytest.approx(published, rel=0.2)
