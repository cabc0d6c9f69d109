"""Finished RL post-training runs: read from disk, cut short, or simulated."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.runs import inside
from scale_callbacks.schedule import Schedule
from scale_callbacks.simulate import Simulated

Floats = NDArray[np.float64]

KINDS = {"yes": "saturates", "no": "still rising", "collapses": "collapses"}
CUTS = (0.35, 0.5, 0.7)  # of runs cut short
_EXTRAS = ("frac_reward_zero_std", "reward_std", "kl", "entropy", "completion_length")


@dataclass(frozen=True)
class RewardRun:
    """One finished RL run.

    Attributes:
        name: "source/run".
        source: who made it; runs of one source are not independent.
        kind: "yes" (saturates), "no" (still rising, or flat) or "collapses".
        steps: optimizer steps.
        rewards: rewards there.
        extra: further signals at the same steps.
        rates: learning rate at the same steps, where the run logged it.
        truth: the curve without noise, of a simulation.
        licence: of the curve.
    """

    name: str
    source: str
    kind: str
    steps: Floats
    rewards: Floats
    extra: Mapping[str, Floats] = field(default_factory=dict)
    rates: Floats | None = None
    truth: Floats | None = None
    licence: str = ""

    @property
    def horizon(self) -> int:
        """Last step."""
        return max(1, math.ceil(float(self.steps[-1])))

    def schedule(self) -> Schedule | None:
        """The learning-rate plan as it was logged."""
        if self.rates is None:
            return None
        known = np.isfinite(self.rates) & (self.steps >= 1)
        return (
            Schedule.from_points(self.steps[known], np.maximum(self.rates[known], 0.0))
            if known.any()
            else None
        )

    def cut(self, share: float) -> RewardRun:
        """The same run, had its budget ended at a share of it."""
        kept = self.steps <= self.steps[0] + share * (self.steps[-1] - self.steps[0])
        return RewardRun(
            f"{self.name}@{share:g}", self.source, "cut", self.steps[kept], self.rewards[kept],
            {name: values[kept] for name, values in self.extra.items()},
            truth=None if self.truth is None else self.truth[kept], licence=self.licence,
        )  # fmt: skip


def as_run(curve: Simulated) -> RewardRun:
    """A simulated curve as a run; every one is its own source."""
    return RewardRun(curve.name, curve.name, curve.kind, curve.steps, curve.rewards, truth=curve.truth)


def cut_short(runs: Iterable[RewardRun]) -> list[RewardRun]:
    """Each run with its budget ended at 35, 50 and 70% of its length, where twelve observations are left."""
    cuts = [run.cut(share) for run in runs for share in CUTS]
    return [run for run in cuts if len(run.steps) >= 12]


def read_reward_runs(path: str | Path) -> list[RewardRun]:
    """Read reward curves from a folder with a `runs.jsonl` beside its CSV files, or from an `.npz` bundle.

    A CSV has the columns step and reward, and whatever else was logged. In `runs.jsonl` each line is an
    object with "run" (the CSV's path without its ending) and "saturates" ("yes", "no" or "collapses").

    Raises:
        ValueError: a file that is not of this form, named.
        FileNotFoundError: nothing there.
    """
    path = Path(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as bundle:
            metas = json.loads(str(bundle["meta"]))
            return [
                _run(meta, dict(zip(meta["columns"], bundle[str(i)], strict=True)))
                for i, meta in enumerate(metas)
            ]
    index = path / "runs.jsonl"
    if not index.is_file():
        raise FileNotFoundError(f"{path} holds no runs.jsonl")
    metas = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [_run(meta, _columns(inside(path, f"{meta['run']}.csv"))) for meta in metas]


def _run(meta: Mapping[str, Any], columns: Mapping[str, Floats]) -> RewardRun:
    name = str(meta["run"])
    kept = np.isfinite(columns["reward"])
    steps, rewards = columns["step"][kept], columns["reward"][kept]
    if len(steps) < 4:
        raise ValueError(f"{name}: {len(steps)} finite rewards are no curve")
    return RewardRun(
        name=name,
        source=name.split("/")[0],
        kind=str(meta.get("saturates", "no")),
        steps=steps,
        rewards=rewards,
        extra={key: columns[key][kept] for key in _EXTRAS if key in columns},
        rates=columns["lr"][kept] if "lr" in columns else None,
        licence=str(meta.get("license", "")),
    )


def _columns(path: Path) -> dict[str, Floats]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        names = list(rows.fieldnames or ())
        if not {"step", "reward"} <= set(names):
            raise ValueError(f"{path} lacks the column step or reward: has {names}")
        try:
            table = [[float(row[name] or "nan") for name in names] for row in rows]
        except (TypeError, ValueError) as fault:
            raise ValueError(f"{path}, row {rows.line_num}: {fault}") from fault
    return dict(zip(names, np.array(table, dtype=np.float64).reshape(-1, len(names)).T.copy(), strict=True))
