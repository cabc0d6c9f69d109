"""Learn the population prior from finished runs, and validate it leaving one source out at a time.

    python -m scale_callbacks.learning tests/data/curves --out scale_callbacks/priors/population.json

What is not fixed by structure is a knob. From a start set by hand each knob is tried a step up and a step
down, and a step is taken where it clearly improves the score: the mean over runs of a Student-t log score of
forecast and interval, the runs of one source sharing the weight of the square root of their number. Each fold
takes its own steps, from the gains measured on the other sources alone, and sets its own interval widths; a
reported figure of a source is always that of the fold which never saw it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.curve import Curve
from scale_callbacks.forecaster import LossForecaster
from scale_callbacks.laws.base import plan_of
from scale_callbacks.prior import Prior, load_prior
from scale_callbacks.runs import Run, read_runs

Floats = NDArray[np.float64]

SMALL = "small"  # how sources of short runs begin
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
MOST = 8  # runs of a source used for choosing knobs: the others are near copies


class Told(NamedTuple):
    """One forecast against the truth, all over the true final loss."""

    source: str
    run: str
    language_model: bool
    share: float
    error: float
    below: float
    above: float
    to_come: float


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
                    )
                )
        return rows


def log_score(rows: Sequence[Told]) -> Floats:
    """Negative log density of each truth, for a Student t (4 degrees) with the forecast's own two halves."""
    _, _, _, _, error, below, above, _ = (np.array(column) for column in zip(*rows, strict=True))
    half = np.where(error > 0.0, below, above) / 1.645 + 5e-4
    width = (below + above) / 3.29 + 5e-4
    return np.asarray(np.log(width) + 2.5 * np.log1p((error / half) ** 2 / 4.0), dtype=np.float64)


def by_source(rows: Sequence[Told]) -> dict[str, tuple[float, float]]:
    """Mean score of each source and its weight."""
    scores, sources = log_score(rows), np.array([row.source for row in rows])
    return {s: (float(scores[sources == s].mean()), math.sqrt((sources == s).sum())) for s in set(sources)}


def gain(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]], without: str
) -> float:
    """Weighted gain of score over all sources but one."""
    pairs = [(before[s][0] - after[s][0], before[s][1]) for s in before if s != without]
    return sum(g * w for g, w in pairs) / sum(w for _, w in pairs)


Knob = tuple[str, Callable[[Prior, float], Prior], tuple[float, ...]]


def _regime(index: int, field: str, place: int | None, *, factor: bool) -> Callable[[Prior, float], Prior]:
    def turn(prior: Prior, step: float) -> Prior:
        regime = prior.regimes[index]
        old: Any = getattr(regime, field)
        number = old if place is None else old[place]
        number = number * step if factor else number + step
        new = number if place is None else tuple(number if i == place else v for i, v in enumerate(old))
        regimes = list(prior.regimes)
        change: dict[str, Any] = {field: new}
        regimes[index] = replace(regime, **change)
        return replace(prior, regimes=tuple(regimes))

    return turn


def _field(field: str, *, factor: bool = True, place: int | None = None) -> Callable[[Prior, float], Prior]:
    def turn(prior: Prior, step: float) -> Prior:
        old = getattr(prior, field)
        number = old if place is None else old[place]
        number = number * step if factor else number + step
        new = number if place is None else tuple(number if i == place else v for i, v in enumerate(old))
        return prior.with_(**{field: new})

    return turn


def knobs() -> list[Knob]:
    """The constants that are learned, with the steps they are tried at.

    Widths are not among them: learned ones came out narrower than sources left out could bear.
    """
    out: list[Knob] = [
        ("floor", _field("floor"), (0.6, 1.7)),
        ("annealing", _field("annealing"), (0.6, 1.7)),
        ("speed", _regime(0, "speed", 0, factor=False), (-0.6, 0.6)),
        ("short weight", _regime(1, "weight", None, factor=True), (0.4, 2.5)),
        ("other weight", _regime(2, "weight", None, factor=True), (0.4, 2.5)),
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
        self.scores = by_source(self.rows(start))
        self.folds = dict.fromkeys(self.scores, start)

    def rows(self, prior: Prior) -> list[Told]:
        """All forecasts of the thinned runs under a prior."""
        return [row for case in self.cases for row in case.told(prior)]

    def step(self, knob: Knob, least: float = 3e-3) -> None:
        """Try a knob both ways; every fold takes the step that gains most on its sources, if any does."""
        name, turn, steps = knob
        tried = {step: by_source(self.rows(turn(self.common, step))) for step in steps}
        for fold, prior in self.folds.items():
            gains = {step: gain(self.scores, scores, fold) for step, scores in tried.items()}
            best = max(gains, key=gains.__getitem__)
            if gains[best] > least:
                self.folds[fold] = turn(prior, best)
        gains = {step: gain(self.scores, scores, "") for step, scores in tried.items()}
        best = max(gains, key=gains.__getitem__)
        if gains[best] > least:
            self.common, self.scores = turn(self.common, best), tried[best]
        self.say(f"{name}: " + ", ".join(f"{step:g} {g:+.4f}" for step, g in gains.items()))


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


def calibrated(prior: Prior, rows: Sequence[Told], level: float = 0.9, shrink: float = 0.7) -> Prior:
    """The prior with interval widths that hold the truths of these rows at the level they say.

    By share of the plan seen, neighbouring shares counting half, and apart for plans whose rate still falls
    by less and by more than a third of its peak; then one factor for all short runs. Runs that are no
    language models have no say: the kind they are like widens theirs. Runs of one source share the weight of
    the square root of their number. Each factor is a quantile of error over half-width, drawn towards 1.

    Args:
        prior: what the rows were forecast with.
        rows: forecasts of runs that the prior may see.
        level: of their intervals.
        shrink: power that factors are taken to.
    """
    long = [row for row in rows if row.language_model and not row.source.startswith(SMALL)]
    table = [
        (share, *(_factor(long, share, open_, level) ** shrink for open_ in (False, True)))
        for share in SHARES
    ]
    prior = prior.with_(calibration=tuple(table))
    short = [row for row in rows if row.source.startswith(SMALL)]
    if len(short) < 8:
        return prior
    excess = _ratios(short) / [prior.widening(row.share, row.to_come, {}) for row in short]
    factor = float(np.clip(_quantile(excess, _weights(short), level), 0.6, 2.5) ** shrink)
    regimes = [replace(r, widening=r.widening * factor) if r.name == "short" else r for r in prior.regimes]
    return prior.with_(regimes=tuple(regimes))


def _factor(rows: Sequence[Told], share: float, open_: bool, level: float) -> float:
    """What the half-widths near a share must be multiplied with to hold their truths."""
    place = SHARES.index(share)
    near = [
        row for row in rows if abs(SHARES.index(row.share) - place) <= 1 and (row.to_come > 0.35) == open_
    ]
    if len(near) < 8:
        return 1.0
    weights = _weights(near) * [1.0 if row.share == share else 0.5 for row in near]
    return float(np.clip(_quantile(_ratios(near), weights, level), 0.6, 2.5))


def _ratios(rows: Sequence[Told]) -> Floats:
    return np.array([row.error / row.below if row.error > 0.0 else -row.error / row.above for row in rows])


def _weights(rows: Sequence[Told]) -> Floats:
    sources = np.array([row.source for row in rows])
    return np.array([(sources == source).sum() ** -0.5 for source in sources])


def _quantile(values: Floats, weights: Floats, level: float) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(reached, level)])


def table(rows: Sequence[Told]) -> str:
    """Median and 90th percentile of |error|, bias, coverage and width by share, in percent."""
    lines = []
    for share in SHARES:
        here = [row for row in rows if row.share == share]
        if here:
            errors = 100.0 * np.array([row.error for row in here])
            held = [row.error <= row.below and -row.error <= row.above for row in here]
            width = 100.0 * np.median([row.below + row.above for row in here])
            lines.append(
                f"  {share:.0%}: median {np.median(np.abs(errors)):.2f}"
                f" p90 {np.quantile(np.abs(errors), 0.9):.2f}"
                f" bias {np.median(errors):+.2f} coverage {np.mean(held):.2f} width {width:.1f} n {len(here)}"
            )
    return "\n".join(lines)


def calibrated_on(cases: Sequence[Case], prior: Prior, *, without: str) -> Prior:
    """The prior with widths set on all runs but those of one source."""
    return calibrated(
        prior, [row for case in cases if case.run.source != without for row in case.told(prior)]
    )


def validated(cases: Sequence[Case], folds: dict[str, Prior]) -> list[Told]:
    """Forecasts of every run by the fold that never saw its source, in the prior or in the widths."""
    rows = []
    for source, prior in folds.items():
        honest = calibrated_on(cases, prior, without=source)
        rows += [row for case in cases if case.run.source == source for row in case.told(honest)]
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
    parser.add_argument("--passes", type=int, default=1)
    given = parser.parse_args(arguments)
    cases = read_cases(given.folder)
    search = learn(cases, load_prior("start"), passes=given.passes)
    rows = validated(cases, search.folds)
    for name, chosen in _groups(rows).items():
        print(name, table(chosen), sep="\n")
    if given.out:
        digest = hashlib.sha256()
        for name in ("loss", "small"):
            digest.update((given.folder / f"{name}.npz").read_bytes())
        source = f"learned by scale_callbacks.learning from curves with sha256 {digest.hexdigest()[:16]}"
        prior = replace(calibrated_on(cases, search.common, without=""), name="population", source=source)
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
