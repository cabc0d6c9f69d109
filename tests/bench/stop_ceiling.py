"""How well could any rule stop the simulated runs? Bayes with the true mix and the noise known.

    python tests/bench/stop_ceiling.py               # about five minutes, one thread

The posterior of a run is made of 16,000 shapes drawn from the very mix that the runs are drawn of; the level
is free, the scale is what the mix allows, standard deviation and autocorrelation of the noise are told. A run
is stopped as soon as the probability that this harms it is below a bound: no rule that asks how probable a
harm is can know more. Beside it stands a policy that also knows what the table counts, where only stops of
saturating runs save: it bounds (harm of rising + 3 * harm of saturating) / ((1 - x) * P(saturates)), the
weights being the best of those tried on these very runs. Figures are quoted on another seed than these.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.special import log_ndtr

from scale_callbacks import SaturationRule
from scale_callbacks.reward_backtest import EVERY, Outcome, judge, stop_live
from scale_callbacks.reward_runs import RewardRun, as_run
from scale_callbacks.simulate import _SHAPES, MIX, NOISE, kind_of, simulate

Floats = NDArray[np.float64]

GRID = 400  # points a shape is kept at
HARM = 0.095  # share of the gain: a line reaches 10% at a grid point
BOUNDS = (0.05, 0.08, 0.10, 0.12, 0.15, 0.20, 0.25)
SCORES = (0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.6)
CONFIDENCES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


@dataclass(frozen=True)
class Told:
    """What the posterior says of one run at each of its decisions."""

    kind: str
    seen: Floats
    harm: Floats
    score: Floats
    outcomes: list[Outcome]


@dataclass(frozen=True)
class Library:
    """Shapes drawn from the mix: (shapes, grid) values from 0, where a stop would harm, which kind."""

    shapes: Floats
    harm: NDArray[np.bool_]
    kinds: NDArray[np.str_]


def library(count: int, seed: int) -> Library:
    """Draw shapes as `simulate` does."""
    rng = np.random.default_rng(seed)
    x = (np.arange(GRID) + 0.5) / GRID
    shapes = np.empty((count, GRID), np.float32)
    kinds = []
    for i, law in enumerate(rng.choice(list(MIX), count, p=list(MIX.values()))):
        shape = _SHAPES[str(law)](x, rng)
        shapes[i] = (shape - shape[0]) / (float(np.ptp(shape)) or 1.0)
        kinds.append(kind_of(shapes[i]))
    top = shapes.argmax(1)
    least = np.minimum.accumulate(shapes, axis=1)[np.arange(count), top]
    gain = (shapes.max(1) - least)[:, None]
    left = shapes[:, -GRID // 10 :].mean(1)[:, None] - shapes
    return Library(shapes, (left > HARM * gain) & (gain > 0.0), np.array(kinds))


def posterior(run: RewardRun, known: Library) -> Told:
    """Tell the posterior of a run at each of its decisions."""
    at = decisions(run)
    edges = np.concatenate(([0], np.array(at) + 1))
    count = np.diff(edges).astype(float)
    n = len(run.steps)
    rewards = np.add.reduceat(run.rewards[: edges[-1]], edges[:-1]) / count
    middle = np.add.reduceat(run.steps[: edges[-1]], edges[:-1]) / count / n
    place = np.clip(middle * GRID - 0.5, 0.0, GRID - 1.001)
    left = place.astype(int)
    part = (place - left).astype(np.float32)
    features = known.shapes[:, left] * (1.0 - part) + known.shapes[:, left + 1] * part
    assert run.truth is not None
    flat = np.ptp(known.shapes, axis=1) == 0.0
    log = evidence(rewards - rewards[0], features, flat, count, run.rewards - run.truth)
    weight = np.exp(log - log.max(0))
    weight /= weight.sum(0)
    there = np.clip(np.round(run.steps[at] / n * GRID - 0.5).astype(int), 0, GRID - 1)
    harmed = weight * known.harm[:, there]
    rising, settled = ((known.kinds == kind).astype(float) for kind in ("no", "yes"))
    seen = run.steps[at] / n
    worth = np.maximum(1.0 - seen, 0.02) * np.maximum(settled @ weight, 1e-3)
    score = (rising @ harmed + 3.0 * (settled @ harmed)) / worth
    return Told(run.kind, seen, harmed.sum(0), score, [judge(run, i) for i in at])


def evidence(
    rewards: Floats, features: Floats, flat: NDArray[np.bool_], count: Floats, noise: Floats
) -> Floats:
    """(shapes, bins) log evidence of the bins up to each: free level, scale of the mix, known noise."""
    sd, rho = float(noise.std()), float(np.clip(np.corrcoef(noise[:-1], noise[1:])[0, 1], 0.0, 0.6))
    # Means of consecutive stretches of an AR(1): variance of each, and what a stretch tells of the next.
    variance = sd**2 / count * ((1 + rho) / (1 - rho) - 2 * rho * (1 - rho**count) / (count * (1 - rho) ** 2))
    share = (1 - rho ** count[:-1]) * (1 - rho ** count[1:]) / (count[:-1] * count[1:])
    link = sd**2 * rho * share / (1 - rho) ** 2 / variance[:-1]
    variance[1:] -= link**2 * variance[:-1]
    columns = [rewards.copy(), np.ones(len(rewards)), features.copy()]
    for column, whole in zip(columns, (rewards, np.ones(len(rewards)), features), strict=True):
        column[..., 1:] -= (link * whole[..., :-1]).astype(column.dtype)
    y, one, f = columns
    w = 1.0 / variance
    sums = [
        np.cumsum((w * a).astype(f.dtype) * b, axis=-1).astype(float)
        for a, b in ((one, f), (1.0, f * f), (y, f))
    ]
    ones, ys, squares = (np.cumsum(w * a) for a in (one * one, one * y, y * y))
    precision = np.maximum(sums[1] - sums[0] ** 2 / ones, 1e-9)
    cross = sums[2] - sums[0] * ys / ones
    scale, error = cross / precision, 1.0 / np.sqrt(precision)
    low, high = sd / NOISE[1], sd / NOISE[0]
    below, above = (low - scale) / error, (high - scale) / error
    turned = below > 0.0
    small, large = log_ndtr(np.where(turned, -above, below)), log_ndtr(np.where(turned, -below, above))
    inside = large + np.log1p(-np.exp(np.minimum(small - large, -1e-12)))
    rss = squares - ys**2 / ones - cross**2 / precision
    prior = np.log(np.clip(scale, low, high)) + math.log(math.log(high / low))
    told = -0.5 * rss + inside + np.log(error) - prior + 0.5 * math.log(2.0 * math.pi)
    return np.where(flat[:, None], -0.5 * (squares - ys**2 / ones), told)


def decisions(run: RewardRun) -> list[int]:
    """Observations at which a rule is asked, as in a backtest."""
    due, at = EVERY, []
    for i in range(len(run.steps) - 1):
        if run.steps[i] >= due * run.horizon:
            due = math.floor(run.steps[i] / run.horizon / EVERY + 1.0 + 1e-9) * EVERY
            at.append(i)
    return at


def line(name: str, kinds: list[str], stops: list[Outcome | None]) -> str:
    """One line of the table."""

    def mean(kind: str, what: str) -> float:
        some = [stop for told, stop in zip(kinds, stops, strict=True) if told == kind]
        return float(np.mean([0.0 if stop is None else float(getattr(stop, what)) for stop in some]))

    harmed = float(np.mean([stop.harmed for stop in stops if stop is not None]))
    return (
        f"{name:24s} {mean('yes', 'saved'):5.2f} / {mean('yes', 'harmed'):.2f} {mean('no', 'harmed'):12.2f}"
        f" {mean('collapses', 'rescued'):18.2f} {harmed:14.2f}"
    )


def first(told: Told, values: Floats, bound: float) -> Outcome | None:
    """What the first stop below a bound did."""
    hit = np.flatnonzero((values < bound) & (told.seen >= 0.1))
    return told.outcomes[hit[0]] if len(hit) else None


def main(
    runs: Annotated[int, typer.Option(help="Of each seed.")] = 100,
    seeds: Annotated[list[int], typer.Option("--seed")] = [1, 2, 7],  # noqa: B006
    shapes: Annotated[int, typer.Option(help="Of the posterior.")] = 16_000,
) -> None:
    """Print the table."""
    known = library(shapes, seed=99)
    some = [as_run(curve) for seed in seeds for curve in simulate(runs, seed=seed)]
    kinds = [run.kind for run in some]
    told = [posterior(run, known) for run in some]
    print("                         saturates     rising harmed  collapses rescued  stops harmed")
    for bound in BOUNDS:
        print(line(f"Bayes, harm < {bound:.2f}", kinds, [first(t, t.harm, bound) for t in told]))
    for bound in SCORES:
        print(line(f"knows the table, < {bound:.2f}", kinds, [first(t, t.score, bound) for t in told]))
    for confidence in CONFIDENCES:
        rule = SaturationRule(confidence=confidence)
        outcomes = [judge(run, stop_live(run, rule)[0]) for run in some]
        stops = [outcome if outcome.stopped else None for outcome in outcomes]
        print(line(f"SaturationRule({confidence})", kinds, stops), flush=True)


if __name__ == "__main__":
    typer.run(main)
