"""The least error to be had: that of a forecast which knew everything but the noise of the last losses.

A final loss is a mean of a few noisy ones. Its error is drawn from what the curves tell of their noise, and
its median and 90th percentile over the runs taken, beside those of the forecasts (the prior has seen them).
"""

from pathlib import Path

import numpy as np

from scale_callbacks.learning import Case, told_by
from scale_callbacks.prior import load_prior
from scale_callbacks.runs import read_runs

CURVES = Path(__file__).parents[1] / "data" / "curves"
SHARES, DRAWS, NINETY = (0.5, 0.9), 2000, 1.645
WIDTHS = (0.002, 0.005, 0.01, 0.02, 0.03)  # of the plan, that a final loss may be the mean of
BARS = {  # errors aimed at, in % of the final loss
    ("all public runs", 0.9, "90th percentile"): 0.62,
    ("short runs", 0.9, "median"): 1.0,
}


def measure():
    """Everything here, by name."""
    rng, found = np.random.default_rng(0), {}
    groups = {"all public runs": "loss", "short runs": "small", "fine-tuning runs": "finetune"}
    for group, bundle in groups.items():
        cases = [Case.of(run, SHARES) for run in read_runs([CURVES / f"{bundle}.npz"]) if run.scored]
        rows = told_by(cases, load_prior())
        single = {case.run.name: uncertain(case.run) for case in cases}
        for share in SHARES:
            seen = [row for row in rows if row.share == share]
            noise = np.array([row.noise / NINETY * single[row.run] for row in seen])
            drawn = np.abs(rng.standard_normal((DRAWS, len(noise)))) * noise
            for name, part in (("median", 0.5), ("90th percentile", 0.9)):
                least = 100.0 * np.quantile(drawn, part, axis=1)
                what = f"{group} at {share:.0%}, {name}"
                found[f"{what}: least, %"] = float(least.mean())
                found[f"{what}: forecasts, %"] = 100.0 * float(
                    np.quantile([abs(r.error) for r in seen], part)
                )
                if (group, share, name) in BARS:
                    bar = BARS[group, share, name]
                    found[f"{what}: chance of at most {bar:g}% if all were known, %"] = 100.0 * float(
                        np.mean(least <= bar)
                    )
    return found


def uncertain(run):
    """Noise of the run's final loss over that of the mean of the losses of its last 1%.

    Some finals are the last loss, some the mean of 2% of the plan: the window whose mean is nearest tells.
    """
    last = [run.losses[run.steps > (1.0 - width) * run.schedule.horizon] for width in WIDTHS]
    nearest = min(
        (part for part in last if len(part)), key=lambda part: abs(part.mean() - run.final), default=()
    )
    return np.sqrt(max(len(last[WIDTHS.index(0.01)]), 1) / max(len(nearest), 1))
