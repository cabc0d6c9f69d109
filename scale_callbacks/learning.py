"""Learn the population prior from finished runs, and validate it leaving one source out at a time.

    python -m scale_callbacks.learning tests/data/curves --out scale_callbacks/priors/population.json

What is not fixed by structure is a knob. From a start set by hand each knob is tried a step up and a step
down. The score is the mean over runs of a Student-t log score of forecast and interval, widths set anew each
time, the runs of one source sharing the weight of the square root of their number. A step is taken where the
gain is larger than twice its standard error over sources: two dozen steps are tried, a dozen sources tell
little, and what they do not clearly tell stays as published laws and hand set it. Each fold takes its own
steps, from the gains measured on the other sources alone, and sets its own interval widths; a source's
reported figure is always that of the fold which never saw it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.calibration import (
    SHARES,
    SMALL,
    Told,
    by_source,
    calibrated,
    fine_calibrated,
    gain,
    table,
    widened,
)
from scale_callbacks.curve import Curve
from scale_callbacks.forecaster import LossForecaster
from scale_callbacks.laws.base import plan_of
from scale_callbacks.prior import Prior, load_prior
from scale_callbacks.runs import Run, read_runs

Floats = NDArray[np.float64]

SEEN_AND_FRESH = ("epochs", "images", "vision")  # bundles whose kinds are set by hand, "fresh" ones apart
MOST = 8  # runs of a source used for choosing knobs: the others are near copies


@dataclass(frozen=True)
class Case:
    """A run with its curve as it stood at each share of the plan."""

    run: Run
    curves: tuple[tuple[float, Curve], ...]

    @classmethod
    def of(cls, run: Run, shares: Sequence[float] = SHARES) -> Case:
        """Replay a run once, keeping its curve at each share that holds eight observations."""
        curve, curves, start = Curve(run.schedule.horizon), [], 0
        for share in shares:
            end = int(np.searchsorted(run.steps, share * run.schedule.horizon, side="right"))
            curve.observe(run.steps[start:end], run.losses[start:end])
            start = end
            if curve.n >= 8:
                kept = Curve(1)
                kept.load_state_dict(curve.state_dict())
                curves.append((share, kept))
        return cls(run, tuple(curves))

    def told(self, prior: Prior) -> list[Told]:
        """Forecasts at every share under a prior."""
        run = self.run
        forecaster = LossForecaster(run.schedule, prior=prior, steps_per_epoch=run.steps_per_epoch)
        rows, plan = [], plan_of(run.schedule)
        for share, curve in self.curves:
            forecaster.curve = curve
            forecast = forecaster.forecast()
            if forecast is not None:
                value, low, high = (v / run.final for v in (forecast.value, forecast.low, forecast.high))
                rows.append(
                    Told(
                        run.source,
                        run.name,
                        run.language_model,
                        share,
                        value - 1.0,
                        value - low,
                        high - value,
                        plan.fall_to_come(share),
                        forecaster.noise_ahead(forecast.value) / run.final,
                    )
                )
        return rows


Knob = tuple[str, Callable[[Prior, float], Prior], tuple[float, ...]]


def _stepped(old: Any, step: float, place: int | None, *, factor: bool) -> Any:
    """A number, or the one at a place of a tuple, moved by a step."""
    number = old if place is None else old[place]
    number = number * step if factor else number + step
    return number if place is None else tuple(number if i == place else v for i, v in enumerate(old))


def _regime(index: int, field: str, place: int | None, *, factor: bool) -> Callable[[Prior, float], Prior]:
    def turn(prior: Prior, step: float) -> Prior:
        regime = prior.regimes[index]
        change: dict[str, Any] = {field: _stepped(getattr(regime, field), step, place, factor=factor)}
        regimes = list(prior.regimes)
        regimes[index] = replace(regime, **change)
        return replace(prior, regimes=tuple(regimes))

    return turn


def _field(field: str, *, factor: bool = True, place: int | None = None) -> Callable[[Prior, float], Prior]:
    def turn(prior: Prior, step: float) -> Prior:
        return prior.with_(**{field: _stepped(getattr(prior, field), step, place, factor=factor)})

    return turn


def _form(index: int) -> Callable[[Prior, float], Prior]:
    def turn(prior: Prior, step: float) -> Prior:
        forms = [(*f[:2], f[2] * step) if i == index else f for i, f in enumerate(prior.forms)]
        return prior.with_(forms=tuple(forms))

    return turn


def knobs() -> list[Knob]:
    """The constants that are learned, with the steps they are tried at.

    Widths are not among them: learned ones came out narrower than sources left out could bear. Nor are the
    weights of the kinds of runs: how often each kind is among these files says who made files.
    """
    out: list[Knob] = [
        ("floor", _field("floor"), (0.6, 1.7)),
        ("annealing", _field("annealing"), (0.6, 1.7)),
        ("speed", _regime(0, "speed", 0, factor=False), (-0.6, 0.6)),
        ("saturating form", _form(1), (0.4, 2.5)),
        ("steps", _field("steps"), (0.5, 2.0)),
        ("peak", _field("peak"), (0.7, 1.4)),
        ("tilt", _regime(0, "tilt", None, factor=True), (0.6, 1.6)),
    ]
    for i, name in enumerate(("pretraining", "short")):
        out += [
            (f"{name} exponent", _regime(i, "exponent", 0, factor=False), (-0.05, 0.05)),
            (f"{name} slope", _regime(i, "slope", 0, factor=False), (-0.2, 0.2)),
            (f"{name} drop", _regime(i, "drop", 0, factor=False), (-0.12, 0.12)),
        ]
    return out


class Search:
    """One pass of coordinate steps, taken by every fold from the gains on its own sources.

    Args:
        cases: the runs to learn from.
        start: the prior to start from.
        say: where progress goes.
    """

    def __init__(self, cases: Sequence[Case], start: Prior, say: Callable[[str], None] = print) -> None:
        self.cases, self.say = _thinned(cases), say
        self.common = start
        self.now = told_by(self.cases, start)
        self.folds = dict.fromkeys(sorted({row.source for row in self.now}), start)

    def gains(self, tried: dict[float, list[Told]], fold: str) -> dict[float, tuple[float, float]]:
        """Gain of each step, and its standard error, over all sources but the fold's."""
        before = by_source(widened(self.now, self.common, fold))
        return {
            step: gain(before, by_source(widened(rows, self.common, fold))) for step, rows in tried.items()
        }

    def step(self, knob: Knob, least: float = 2e-3) -> None:
        """Try a knob both ways; every fold takes the step that clearly gains most on its sources, if any."""
        name, turn, steps = knob
        tried = {step: told_by(self.cases, turn(self.common, step)) for step in steps}
        for fold, prior in self.folds.items():
            best = _clearest(self.gains(tried, fold), least)
            self.folds[fold] = prior if best is None else turn(prior, best)
        gains = self.gains(tried, "")
        best = _clearest(gains, least)
        if best is not None:
            self.common, self.now = turn(self.common, best), tried[best]
        told = ", ".join(f"{step:g} {mean:+.4f} ({error:.4f})" for step, (mean, error) in gains.items())
        self.say(f"{name}: {told}; taken: {best}")


def _clearest(gains: dict[float, tuple[float, float]], least: float) -> float | None:
    """The step with the largest gain, if that is larger than twice its error and than `least`."""
    best = max(gains, key=lambda step: gains[step][0])
    mean, error = gains[best]
    return best if mean > max(least, 2.0 * error) else None


def _thinned(cases: Iterable[Case]) -> list[Case]:
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.run.source, []).append(case)
    picks = [np.unique(np.linspace(0, len(g) - 1, MOST).astype(int)) for g in groups.values()]
    return [group[i] for group, pick in zip(groups.values(), picks, strict=True) for i in pick]


def learn(
    cases: Sequence[Case], start: Prior, *, passes: int = 2, say: Callable[[str], None] = print
) -> Search:
    """Run the coordinate search."""
    search = Search(cases, start, say)
    for _ in range(passes):
        for knob in knobs():
            search.step(knob)
    return search


def fine_validated(cases: Sequence[Case], prior: Prior) -> list[Told]:
    """Forecasts of fine-tuning runs, their kind's widths set without the repository each comes from."""
    told = told_by(cases, prior)
    rows = []
    for source in sorted({case.run.source for case in cases}):
        honest = fine_calibrated(prior, [row for row in told if row.source != source])
        rows += told_by([case for case in cases if case.run.source == source], honest)
    return rows


def told_by(cases: Sequence[Case], prior: Prior) -> list[Told]:
    """Forecasts of all runs under a prior."""
    return [row for case in cases for row in case.told(prior)]


def validated(cases: Sequence[Case], folds: dict[str, Prior]) -> list[Told]:
    """Forecasts of every run by the fold that never saw its source, in the prior or in the widths."""
    told = {prior: told_by(cases, prior) for prior in set(folds.values())}
    rows = []
    for source, prior in folds.items():
        honest = calibrated(prior, [row for row in told[prior] if row.source != source])
        rows += told_by([case for case in cases if case.run.source == source], honest)
    return rows


def read_cases(folder: Path) -> list[Case]:
    """All scored runs of the folder's bundles of pretraining and small runs."""
    runs = read_runs(folder / f"{name}.npz" for name in ("loss", "small"))
    return [Case.of(run) for run in runs if run.scored]


def main(arguments: Sequence[str] | None = None) -> None:
    """Learn, validate, print the tables, and write the prior."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of the curve bundles")
    parser.add_argument("--out", type=Path, help="prior file to write")
    parser.add_argument("--finetune", type=Path, help="fine-tuning runs that set that kind's widths")
    parser.add_argument("--passes", type=int, default=1)
    given = parser.parse_args(arguments)
    cases = read_cases(given.folder)
    search = learn(cases, load_prior("start"), passes=given.passes)
    rows = validated(cases, search.folds)
    for name, group in _groups(rows).items():
        print(name, table(group), sep="\n")
    prior = calibrated(search.common, told_by(cases, search.common))
    if given.finetune:
        fine = [Case.of(run) for run in read_runs([given.finetune]) if run.scored]
        print("fine-tuning runs, leaving the repository out", table(fine_validated(fine, prior)), sep="\n")
        prior = fine_calibrated(prior, told_by(fine, prior))
    for bundle in SEEN_AND_FRESH:
        several = read_runs([given.folder / f"{bundle}.npz"])
        for name, fresh in (("set on", False), ("not set on", True)):
            chosen = [Case.of(run) for run in several if ("fresh" in run.flags) is fresh]
            if chosen:
                print(f"{bundle} that the prior was {name}", table(told_by(chosen, prior)), sep="\n")
    if given.out:
        digest = hashlib.sha256()
        for name in ("loss", "small"):
            digest.update((given.folder / f"{name}.npz").read_bytes())
        source = f"learned by scale_callbacks.learning from curves with sha256 {digest.hexdigest()[:16]}"
        prior = replace(prior, name="population", source=source)
        given.out.write_text(json.dumps(prior.to_dict(), indent=1) + "\n")


def _groups(rows: Sequence[Told]) -> dict[str, list[Told]]:
    loss = [row for row in rows if not row.source.startswith(SMALL)]
    groups: dict[str, Any] = {
        "language models, leaving the source out": [row for row in loss if row.language_model],
        "all runs, leaving the source out": loss,
        "small runs, leaving the recipe out": [row for row in rows if row.source.startswith(SMALL)],
    }
    return {name: chosen for name, chosen in groups.items() if chosen}


if __name__ == "__main__":
    main()
