"""What each ingredient of the loss forecasts brings: the same runs again, each time without one of them.

    python -m scale_callbacks.ablation tests/data/curves

The prior is the one in the package, learned with these runs in view; interval widths are set anew for every
line, leaving each run's source out. So the lines may be compared with each other, and are not to be quoted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

from scale_callbacks import bank
from scale_callbacks.calibration import SMALL, Told, log_score, rewidened
from scale_callbacks.learning import read_cases, told_by
from scale_callbacks.prior import Prior, load_prior

SHOWN = (0.2, 0.5, 0.9)
PLAIN = ((0.0, 1.0, 1.0), (1.0, 1.0, 1.0))


def _wide(prior: Prior) -> Prior:
    regime = prior.regimes[0]
    vague = replace(regime, exponent=(regime.exponent[0], 1.0), slope=(regime.slope[0], 4.0))
    return prior.with_(regimes=(replace(vague, drop=(regime.drop[0], 2.0)),))


ABLATIONS: dict[str, Callable[[Prior], Prior]] = {
    "all ingredients": lambda prior: prior,
    "a prior that says little": _wide,
    "one kind of run": lambda prior: prior.with_(regimes=prior.regimes[:1]),
    "the likeliest member alone": lambda prior: prior,
    "power laws alone": lambda prior: prior.with_(plain=1e9),
    "annealing law alone": lambda prior: prior.with_(annealing=0.9999),
    "multi-power law alone": lambda prior: prior.with_(annealing=1e-9, plain=1e-9),
    "the cost of a rate never saturates": lambda prior: prior.with_(forms=prior.forms[:1]),
    "no discrepancy": lambda prior: prior.with_(wander=(1e-5,), wander_weights=(1.0,), stir=(0.0, 0.02)),
    "changes of the rate stir nothing": lambda prior: prior.with_(stir=(0.0, 0.02)),
    "early steps kept": lambda prior: prior.with_(skip=(0.0, 0.0, 0.0)),
    "peak rate ignored": lambda prior: prior.with_(peak=0.0),
    "widths as the mixture has them": lambda prior: prior,
}


def uncalibrated(prior: Prior) -> Prior:
    """The prior with no factors on interval widths but those of the fine-tuning kind and of the catch-all."""
    regimes = [r if r.name != "short" else replace(r, widening=(1.0, 1.0)) for r in prior.regimes]
    return prior.with_(calibration=PLAIN, regimes=tuple(regimes))


def line(name: str, rows: Sequence[Told]) -> str:
    """A line of the table: language models by share seen, and the log score of all runs."""
    models = [row for row in rows if row.language_model and not row.source.startswith(SMALL)]
    cells = []
    for share in SHOWN:
        here = [row for row in models if row.share == share]
        errors = 100.0 * np.abs([row.error for row in here])
        held = np.mean([-row.above <= row.error <= row.below for row in here])
        cells.append(f"{np.median(errors):.2f} / {np.quantile(errors, 0.9):.1f}, {held:.2f}")
    short = [row for row in rows if row.source.startswith(SMALL)]
    scores = f"{log_score(models).mean():.2f} | {log_score(short).mean():.2f}"
    return f"| {name} | {' | '.join(cells)} | {scores} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of the curve bundles")
    given = parser.parse_args(arguments)
    cases, prior = read_cases(given.folder), uncalibrated(load_prior())
    print("| | 20% | 50% | 90% | log score | short runs |", "|---|---|---|---|---|---|", sep="\n")
    for name, changed in ABLATIONS.items():
        margin = 1e-9 if name == "the likeliest member alone" else bank.MARGIN
        with patch.object(bank, "MARGIN", margin):
            rows = told_by(cases, changed(prior))
        print(line(name, rows if name.startswith("widths") else rewidened(rows, changed(prior))), flush=True)


if __name__ == "__main__":
    main()
