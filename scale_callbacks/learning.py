"""Learn the population prior from finished runs, and validate it leaving one source out at a time.

    python -m scale_callbacks.learning tests/data/curves --out scale_callbacks/priors/population.json

Every constant of the prior is a knob. From a start set by hand each knob is tried a step up and a step down,
and a step is taken where it improves the score: the mean over runs of a Student-t log score of forecast and
interval, the runs of one source sharing the weight of the square root of their number. Each fold takes its own
steps, from the gains measured on the other sources alone, and sets its own interval widths; a reported figure
of a source is always that of the fold which never saw it.
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
from scale_callbacks.prior import Prior, load_prior
from scale_callbacks.runs import Run, read_runs

Floats = NDArray[np.float64]

SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
MOST = 8  # runs of a source used for choosing knobs: the others are near copies
CALIBRATED = ((0.0, 1.0), (1.0, 1.0))


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
        rows = []
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
                        fall_to_come(run, share),
                    )
                )
        return rows


def fall_to_come(run: Run, share: float) -> float:
    """How far the rate still falls, over its peak: what no curve can tell before it happens."""
    schedule = run.schedule
    steps = np.linspace(max(share * schedule.horizon, schedule.warmup), schedule.horizon, 200)
    return float(np.maximum(-np.diff(schedule.lr(steps)), 0.0).sum() / schedule.peak)


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


def _wander(prior: Prior, step: float) -> Prior:
    return replace(prior, wander=tuple(sd * step for sd in prior.wander))


def _tilt(prior: Prior, step: float) -> Prior:
    weights = tuple(w * step**i for i, w in enumerate(prior.wander_weights))
    return replace(prior, wander_weights=tuple(w / max(weights) for w in weights))


def knobs() -> list[Knob]:
    """Every constant that is learned, with the steps it is tried at."""
    out: list[Knob] = [
        ("wander", _wander, (0.67, 1.5)),
        ("wander tilt", _tilt, (0.5, 2.0)),
        ("floor", _field("floor"), (0.6, 1.7)),
        ("clock", _field("clock"), (0.75, 1.33)),
        ("skip plan", _field("skip", place=0), (0.67, 1.5)),
        ("skip seen", _field("skip", place=1), (0.67, 1.5)),
        ("peak", _field("peak", factor=False), (-0.1, 0.1)),
        ("annealing", _field("annealing"), (0.6, 1.7)),
        ("plain", _field("plain"), (0.4, 2.5)),
        ("steps", _field("steps"), (0.4, 2.0)),
        ("offset", _field("offset_sd"), (0.6, 1.7)),
    ]
    for i, name in enumerate(("pretraining", "short", "other")):
        out += [
            (f"{name} exponent", _regime(i, "exponent", 0, factor=False), (-0.07, 0.07)),
            (f"{name} exponent sd", _regime(i, "exponent", 1, factor=True), (0.7, 1.4)),
            (f"{name} slope", _regime(i, "slope", 0, factor=False), (-0.25, 0.25)),
            (f"{name} slope sd", _regime(i, "slope", 1, factor=True), (0.7, 1.4)),
            (f"{name} drop", _regime(i, "drop", 0, factor=False), (-0.15, 0.15)),
            (f"{name} drop sd", _regime(i, "drop", 1, factor=True), (0.8, 1.25)),
        ]
        if i:
            out.append((f"{name} weight", _regime(i, "weight", None, factor=True), (0.4, 2.5)))
    out += [
        ("tie", _regime(0, "tie", None, factor=False), (-0.25, 0.25)),
        ("speed", _regime(0, "speed", 0, factor=False), (-0.6, 0.6)),
        ("short noise sd", _regime(1, "noise", 1, factor=True), (0.7, 1.4)),
        ("short horizon sd", _regime(1, "horizon", 1, factor=True), (0.7, 1.4)),
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

    def step(self, knob: Knob, least: float = 5e-4) -> None:
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


def read_cases(folder: Path) -> list[Case]:
    """All scored runs of the folder's bundles of pretraining and small runs."""
    runs = [run for name in ("loss", "small") for run in read_runs([folder / f"{name}.npz"])]
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
    rows = [row for case in cases for row in case.told(search.folds[case.run.source])]
    for name, chosen in _groups(rows).items():
        print(name, table(chosen), sep="\n")
    if given.out:
        digest = hashlib.sha256()
        for name in ("loss", "small"):
            digest.update((given.folder / f"{name}.npz").read_bytes())
        source = f"learned by scale_callbacks.learning from curves with sha256 {digest.hexdigest()[:16]}"
        prior = replace(search.common, name="population", source=source)
        given.out.write_text(json.dumps(prior.to_dict(), indent=1) + "\n")


def _groups(rows: Sequence[Told]) -> dict[str, list[Told]]:
    loss = [row for row in rows if not row.source.startswith("small")]
    groups: dict[str, Any] = {
        "language models, leaving the source out": [row for row in loss if row.language_model],
        "all runs, leaving the source out": loss,
        "small runs, leaving the recipe out": [row for row in rows if row.source.startswith("small")],
    }
    return {name: chosen for name, chosen in groups.items() if chosen}


if __name__ == "__main__":
    main()
