"""Replaying finished runs as if they were live, and scoring the forecasts they would have had."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.due import forecast_steps
from scale_callbacks.forecast import Forecast
from scale_callbacks.forecaster import LossForecaster
from scale_callbacks.peers import PEERS
from scale_callbacks.prior import Prior
from scale_callbacks.runs import Run
from scale_callbacks.sinks import ForecastPoint

Floats = NDArray[np.float64]

SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
FEWEST = 8  # observations seen before a forecast counts
LEVELS = np.linspace(0.005, 0.995, 100)
RESAMPLES = 1000


@dataclass(frozen=True)
class Row:
    """One forecast of one run, made when `share` of its plan was seen.

    Attributes:
        run: name of the run.
        source: its source; runs of one source are not independent.
        family: "language model", "other model" or "fine-tuning".
        share: share of the plan seen.
        final: the truth.
        value: the forecast.
        low: lower end of its interval.
        high: upper end.
        level: level of the interval.
        status: the forecast's status.
        peers: what each peer says at the same time.
    """

    run: str
    source: str
    family: str
    share: float
    final: float
    value: float
    low: float
    high: float
    level: float
    status: str
    peers: Mapping[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Signed error in percent of the final loss."""
        return 100.0 * (self.value - self.final) / abs(self.final)

    @property
    def crps(self) -> float:
        """Continuous ranked probability score in percent of the final loss; smaller is better.

        The forecast is taken for a normal distribution with a spread of its own on each side. The score is
        twice the mean pinball loss over the quantiles (Gneiting and Raftery 2007, equation 21). For a point
        forecast it is the absolute error.
        """
        z = np.array([NormalDist().inv_cdf(p) for p in LEVELS.tolist()])
        edge = NormalDist().inv_cdf(0.5 + self.level / 2)
        side = np.where(z < 0, self.value - self.low, self.high - self.value) / edge
        off = self.final - (self.value + z * side)
        return float(200.0 * np.mean(np.maximum(LEVELS * off, (LEVELS - 1) * off)) / abs(self.final))

    def peer_error(self, peer: str) -> float:
        """Absolute error of a peer in percent of the final loss."""
        return 100.0 * abs(self.peers[peer] - self.final) / abs(self.final)


@dataclass(frozen=True)
class Replayed:
    """One run replayed: its scored rows, and every forecast it would have had."""

    run: Run
    rows: tuple[Row, ...]
    history: tuple[ForecastPoint, ...]


def replay(
    run: Run,
    *,
    shares: Sequence[float] = SHARES,
    level: float = 0.9,
    prior: Prior | str = "population",
    peers: Sequence[str] = tuple(PEERS),
    over_time: bool = True,
) -> Replayed:
    """Feed a finished run to a forecaster as if it were live.

    Args:
        run: the finished run.
        shares: shares of the plan at which forecasts are scored.
        level: level of the intervals.
        prior: the population prior to forecast with.
        peers: names out of `PEERS`.
        over_time: also make every forecast that a live run would have made.
    """
    forecaster = LossForecaster(run.schedule, level=level, prior=prior, steps_per_epoch=run.steps_per_epoch)
    horizon = run.schedule.horizon
    due: list[tuple[float, float | None]] = [(share * horizon, share) for share in shares]
    if over_time:
        due += [(float(step), None) for step in forecast_steps(horizon)]
    rows: list[Row] = []
    history: list[ForecastPoint] = []
    fed = 0
    for step, share in sorted(due, key=lambda pair: pair[0]):
        until = int(np.searchsorted(run.steps, step, side="right"))
        _feed(forecaster, run, fed, until)
        fed = until
        forecast = forecaster.forecast() if until >= FEWEST else None
        if forecast is None:
            continue
        if share is None:
            told = forecast.value, forecast.low, forecast.high, str(forecast.status)
            history.append(ForecastPoint(int(step), *told))
        else:
            seen = run.steps[:until], run.losses[:until]
            said = {name: PEERS[name](run.schedule, *seen) for name in peers}
            rows.append(_row(run, share, forecast, said))
    return Replayed(run, tuple(rows), tuple(history))


def replay_all(
    runs: Iterable[Run], *, workers: int = 1, done: Callable[[], None] = lambda: None, **options: Any
) -> list[Replayed]:
    """Replay several runs, in parallel where more than one worker is given.

    Args:
        runs: the finished runs; those that do not count (`Run.scored`) are left out.
        workers: processes.
        done: called after each run.
        options: handed to `replay`; with several workers they must be picklable.
    """
    job: Callable[[Run], Replayed] = partial(replay, **options)
    scored = [run for run in runs if run.scored]
    results = []
    if workers <= 1:
        for run in scored:
            results.append(job(run))
            done()
        return results
    with ProcessPoolExecutor(workers) as pool:
        for replayed in pool.map(job, scored):
            results.append(replayed)
            done()
    return results


def family_of(run: Run) -> str:
    """Which kind of run this is, for tables."""
    if "task" in run.meta:
        return "fine-tuning"
    return "language model" if run.language_model else "other model"


def score(rows: Sequence[Row], *, seed: int = 0) -> dict[str, Any]:
    """Score forecasts of one share, beside the peers'.

    Returns:
        n, median and p90 of |error|, bias, width and crps (all in percent of the final loss), coverage; for
        each peer its median and p90, how often it is beaten, and the skill score (1 - crps / peer's mean
        absolute error) with a 90% bootstrap interval over sources.
    """
    errors = np.array([row.error for row in rows])
    crps = np.array([row.crps for row in rows])
    table: dict[str, Any] = {
        "n": len(rows),
        "median": float(np.median(np.abs(errors))),
        "p90": float(np.quantile(np.abs(errors), 0.9)),
        "bias": float(np.median(errors)),
        "coverage": float(np.mean([row.low <= row.final <= row.high for row in rows])),
        "width": float(np.median([100 * (row.high - row.low) / abs(row.final) for row in rows])),
        "crps": float(crps.mean()),
        "peers": {},
    }
    sources = np.array([row.source for row in rows])
    for peer in rows[0].peers:
        theirs = np.array([row.peer_error(peer) for row in rows])
        low, high = _skill_interval(crps, theirs, sources, seed)
        table["peers"][peer] = {
            "median": float(np.median(theirs)),
            "p90": float(np.quantile(theirs, 0.9)),
            "beaten": float(np.mean(np.abs(errors) < theirs)),
            "skill": float(1 - crps.mean() / theirs.mean()) if theirs.mean() > 0 else math.nan,
            "skill_low": low,
            "skill_high": high,
        }
    return table


def score_all(replayed: Sequence[Replayed]) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores by group ("all runs" and each family) and share of the plan seen."""
    rows = [row for one in replayed for row in one.rows]
    groups = {"all runs": rows}
    for family in sorted({row.family for row in rows}):
        groups[family] = [row for row in rows if row.family == family]
    if len(groups) == 2:
        del groups["all runs"]
    return {
        group: {
            f"{share:g}": score([row for row in members if row.share == share])
            for share in sorted({row.share for row in members})
        }
        for group, members in groups.items()
    }


def as_json(replayed: Sequence[Replayed]) -> dict[str, Any]:
    """Everything a backtest found, as plain data."""
    return {"scores": score_all(replayed), "rows": [asdict(row) for one in replayed for row in one.rows]}


def _row(run: Run, share: float, forecast: Forecast, peers: Mapping[str, float]) -> Row:
    return Row(
        run=run.name,
        source=run.source,
        family=family_of(run),
        share=share,
        final=run.final,
        value=forecast.value,
        low=forecast.low,
        high=forecast.high,
        level=forecast.level,
        status=str(forecast.status),
        peers=peers,
    )


def _feed(forecaster: LossForecaster, run: Run, start: int, end: int) -> None:
    """Hand over observations; where the target is a validation loss, with the train loss since the last."""
    if run.train is None:
        forecaster.observe(run.steps[start:end], run.losses[start:end])
        return
    steps, losses = run.train
    for i in range(start, end):
        a = np.searchsorted(steps, run.steps[i - 1], side="right") if i else 0
        b = np.searchsorted(steps, run.steps[i], side="right")
        extra = {"train_loss": float(losses[a:b].mean())} if b > a else None
        forecaster.observe(run.steps[i], run.losses[i], extra=extra)


def _skill_interval(crps: Floats, theirs: Floats, sources: NDArray[Any], seed: int) -> tuple[float, float]:
    """90% interval of the skill score when the sources had been others."""
    names = np.unique(sources)
    ours = np.array([crps[sources == name].sum() for name in names])
    peers = np.array([theirs[sources == name].sum() for name in names])
    picks = np.random.default_rng(seed).integers(len(names), size=(RESAMPLES, len(names)))
    low, high = np.quantile(1 - ours[picks].sum(1) / np.maximum(peers[picks].sum(1), 1e-12), (0.05, 0.95))
    return float(low), float(high)
