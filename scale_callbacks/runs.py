"""Finished runs read from disk, to be replayed as if they were live."""

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.schedule import Schedule

Floats = NDArray[np.float64]

# Runs whose end says nothing about the laws: they are read, but left out of every score.
UNSCORED = frozenset({"diverged", "lr_only_rises", "resumed_lr_jump", "finetune"})
SMALLEST_FINAL = 0.05  # below it an error in percent of the final loss has no meaning


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        name: "source/run".
        source: who made it; runs of one source are not independent.
        schedule: the learning-rate plan.
        steps: optimizer steps of the losses.
        losses: the loss that is to be forecast.
        final: what the forecast should have said.
        train: steps and losses of the train curve where `losses` is a validation loss, else None.
        meta: whatever else is known ("flags", "params", "task", ...).
    """

    name: str
    source: str
    schedule: Schedule
    steps: Floats
    losses: Floats
    final: float
    train: tuple[Floats, Floats] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def language_model(self) -> bool:
        """Whether this is a language model, as far as the run says."""
        return "not_language_model" not in self.flags and self.source != "algoperf"

    @property
    def flags(self) -> frozenset[str]:
        """Peculiarities of the run."""
        return frozenset(self.meta.get("flags") or ())

    @property
    def scored(self) -> bool:
        """Whether the run counts in scores."""
        return not (UNSCORED & self.flags) and self.final >= SMALLEST_FINAL

    @property
    def steps_per_epoch(self) -> float | None:
        """Optimizer steps an epoch, for runs of several epochs."""
        epochs = self.meta.get("epochs")
        if not isinstance(epochs, int | float) or epochs <= 1.5:
            return None
        return float(self.meta.get("total_steps", self.schedule.horizon)) / epochs


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read runs from folders that hold a `runs.jsonl`, from single CSV files, or from `.npz` bundles of runs.

    A CSV has the columns step, lr and loss; `<run>.val.csv` beside it the validation loss in the same form.
    In `runs.jsonl` each line is an object with "run" (the CSV's path without its ending) and, where known,
    "target" ("train" or "val"), "final", "flags", "epochs".

    Raises:
        ValueError: a file that is not of this form, named.
        FileNotFoundError: nothing there, or a folder without runs.
    """
    runs: list[Run] = []
    for path in map(Path, paths):
        index = path / "runs.jsonl"
        if index.is_file():
            lines = index.read_text(encoding="utf-8").splitlines()
            runs += [_read_run(path, json.loads(line)) for line in lines if line.strip()]
        elif path.is_dir():
            files = sorted(p for p in path.rglob("*.csv") if not p.name.endswith(".val.csv"))
            if not files:
                raise FileNotFoundError(f"{path} holds neither runs.jsonl nor CSV files")
            runs += [_read_run(path, {"run": str(p.relative_to(path))[:-4]}) for p in files]
        elif path.suffix == ".npz":
            runs += _read_bundle(path)
        else:
            runs.append(_read_run(path.parent, {"run": path.stem}))
    return runs


def final_loss(steps: Floats, losses: Floats, horizon: float) -> float:
    """Mean loss over the last 1% of the plan, at least the last observation."""
    last = steps > 0.99 * horizon
    return float(losses[last].mean()) if last.any() else float(losses[-1])


def inside(folder: Path, name: str) -> Path:
    """A file that a list of runs names, refused where its name leads out of the list's folder."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leads out of {folder}: name runs by their place below it")
    return path


def _read_run(folder: Path, meta: Mapping[str, Any]) -> Run:
    name = str(meta["run"])
    steps, rates, losses = _read_csv(inside(folder, f"{name}.csv"))
    validation = None
    if meta.get("target") == "val":
        at, _, values = _read_csv(inside(folder, f"{name}.val.csv"))
        validation = at, values
    return _run(meta, folder.name, Schedule.from_points(steps, rates), (steps, losses), validation)


def _read_bundle(path: Path) -> list[Run]:
    """Read an `.npz`: "meta" holds what `runs.jsonl` would, "<i>.plan", ".train" and ".val" the curves."""
    with np.load(path, allow_pickle=False) as bundle:
        if "meta" not in bundle:
            raise ValueError(f"{path} is no bundle of runs: it holds {', '.join(bundle.files)}")
        runs = []
        for i, meta in enumerate(json.loads(str(bundle["meta"]))):
            train, plan = bundle[f"{i}.train"], bundle[f"{i}.plan"]
            validation = bundle[f"{i}.val"] if meta.get("target") == "val" else None
            runs.append(_run(meta, path.stem, Schedule.from_points(*plan), train, validation))
    return runs


def _run(meta: Mapping[str, Any], group: str, schedule: Schedule, train: Any, validation: Any) -> Run:
    name = str(meta["run"])
    steps, losses = train if validation is None else validation
    kept = np.isfinite(losses)
    steps, losses = steps[kept], losses[kept]
    if len(steps) == 0:
        raise ValueError(f"{name}: no finite loss")
    final = meta.get("final")
    if not isinstance(final, int | float) or not math.isfinite(final):
        final = final_loss(steps, losses, schedule.horizon)
    return Run(
        name=name,
        source=name.split("/")[0] if "/" in name else group,
        schedule=schedule,
        steps=steps,
        losses=losses,
        final=float(final),
        train=None if validation is None else (train[0], train[1]),
        meta=dict(meta),
    )


def _read_csv(path: Path) -> tuple[Floats, Floats, Floats]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = {"step", "lr", "loss"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(f"{path} lacks the column {', '.join(sorted(missing))}: has {rows.fieldnames}")
        try:
            table = [(float(r["step"]), float(r["lr"]), float(r["loss"] or "nan")) for r in rows]
        except (TypeError, ValueError) as fault:
            raise ValueError(f"{path}, row {rows.line_num}: {fault}") from fault
    steps, rates, losses = np.array(table, dtype=np.float64).reshape(-1, 3).T.copy()
    return steps, rates, losses
