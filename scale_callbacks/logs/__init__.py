"""Logs of runs that were trained elsewhere, one reader a format.

A reader takes a path (or a run id), knows the names it holds, and gives steps and values of some of them. It
raises only `ValueError` and `OSError`, with one clear line; what it had to leave out is counted in its notes.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from scale_callbacks.logs.json_lines import JsonSource
from scale_callbacks.logs.log import Floats, Log, Series, Source, aligned, epoch_length, tidy
from scale_callbacks.logs.mlflow_run import PREFIX, MlflowRun
from scale_callbacks.logs.names import LOSSES, REWARDS, choose, find_rate
from scale_callbacks.logs.table import TableSource, Told, nobody
from scale_callbacks.logs.tensorboard import PATTERN, EventFiles
from scale_callbacks.logs.trainer_state import TrainerState

__all__ = ["Log", "Source", "open_source", "read_log"]

EXTRAS = ("frac_reward_zero_std", "reward_std", "step_time")  # what the rules of rewards look at


def open_source(
    source: str, *, step: str | None = None, tracking_uri: str | None = None, told: Told = nobody
) -> Source:
    """Open a log, in whatever format it is.

    Args:
        source: "mlflow:RUN_ID", or the path of a CSV, JSON or JSONL file, a `trainer_state.json`, a folder of
            a checkpoint, an event file or a folder of event files.
        step: name of the column of optimizer steps; "row" to number the rows; None finds it.
        tracking_uri: where MLflow keeps the run.
        told: told the share that is read.

    Raises:
        ValueError: nothing that can be read as a log.
        OSError: nothing there.
    """
    if source.startswith(PREFIX):
        return MlflowRun(source.removeprefix(PREFIX), tracking_uri)
    path = Path(source)
    try:
        return _open_path(path, step, told)
    except (ValueError, OSError):
        raise
    except Exception as fault:  # a reader's own mistake must not look like a crash of the command line
        raise ValueError(f"{path} cannot be read as a log: {type(fault).__name__}: {fault}") from fault


def read_log(
    source: str,
    *,
    metric: str | None = None,
    step: str | None = None,
    rate: str | None = None,
    reward: bool = False,
    tracking_uri: str | None = None,
    told: Told = nobody,
) -> Log:
    """Read one metric of a log, with its learning rate where that was logged.

    Args:
        source: as in `open_source`.
        metric: its name; None finds the loss, or the reward.
        step: as in `open_source`.
        rate: name of the learning rate; None finds it.
        reward: whether the metric is a reward.
        tracking_uri: as in `open_source`.
        told: told the share that is read.

    Raises:
        ValueError: not readable, no such metric (those that exist are named), no usable value.
        OSError: nothing there, or nobody answers.
    """
    opened = open_source(source, step=step, tracking_uri=tracking_uri, told=told)
    name = choose(opened.label, opened.names, metric, REWARDS if reward else LOSSES, "--metric")
    rate = find_rate([other for other in opened.names if other != name], rate, opened.label)
    extras = [other for other in opened.names if reward and other.rsplit("/", 1)[-1] in EXTRAS]
    epochs = [other for other in opened.names if other.rsplit("/", 1)[-1] == "epoch" and other != name][:1]
    read = opened.read(list(dict.fromkeys([name, *([rate] if rate else []), *extras, *epochs])))
    notes: Counter[str] = Counter()
    steps, values = tidy(*read[name], name, notes)
    if not np.isfinite(values).any():
        raise ValueError(f"{opened.label}: {name} has no finite value")
    return Log(
        label=opened.label,
        name=name,
        steps=steps,
        values=values,
        rates=None if rate is None else _rates(*read[rate], rate, notes),
        extra={
            other.rsplit("/", 1)[-1]: aligned(steps, tidy(*read[other], other, notes))
            for other in extras
            if len(read[other][0])
        },
        is_mean=opened.is_mean(name),
        planned=opened.planned,
        ended=opened.ended,
        steps_per_epoch=epoch_length(read[epochs[0]]) if epochs else None,
        notes=dict(opened.notes + notes),
    )


def _open_path(path: Path, step: str | None, told: Told) -> Source:
    if path.is_dir():
        if (path / "trainer_state.json").is_file():
            return TrainerState(path)
        if (path / "metrics.csv").is_file():  # of Lightning's CSVLogger
            return TableSource(path / "metrics.csv", step, told)
        return EventFiles(path, told)
    if path.match(PATTERN):
        return EventFiles(path, told)
    with path.open("rb") as file:
        begin = file.read(2000)
    if b"\0" in begin:
        raise ValueError(f"{path} is no text file: give CSV, JSON or JSONL in UTF-8, or an event file")
    if b'"log_history"' in begin or path.name == "trainer_state.json":
        return TrainerState(path)
    if begin.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return JsonSource(path, step, told)
    return TableSource(path, step, told)


def _rates(steps: Floats, values: Floats, name: str, notes: Counter[str]) -> Series | None:
    if len(steps) == 0:
        return None
    at, rates = tidy(steps, values, name, notes)
    known = np.isfinite(rates) & (rates >= 0.0)
    if not known.all():
        notes[f"{name}: learning rate negative or no number, left out"] += len(rates) - int(known.sum())
    return (at[known], rates[known]) if known.any() else None
