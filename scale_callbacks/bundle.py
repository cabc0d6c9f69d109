"""Curves of public runs in one compressed file: what priors are learned from and tests are run on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from scale_callbacks.runs import Run
from scale_callbacks.schedule import Schedule


def read_bundle(path: Path | str) -> list[Run]:
    """Read the runs of an `.npz` bundle.

    It holds `meta` (JSON, one entry a run) and, for run i, `i.plan` (steps and rates at the knots of the
    plan), `i.train` and, where there is one, `i.val` (steps and losses).
    """
    runs = []
    with np.load(path) as bundle:
        for i, meta in enumerate(json.loads(str(bundle["meta"]))):
            train = bundle[f"{i}.train"]
            of_val = meta["target"] == "val"
            steps, losses = bundle[f"{i}.val"] if of_val else train
            name = meta["run"] if "/" in meta["run"] else f"small/{meta['run']}"
            runs.append(
                Run(
                    name,
                    name.split("/")[0],
                    Schedule.from_points(*bundle[f"{i}.plan"]),
                    steps,
                    losses,
                    float(meta["final"]),
                    (train[0], train[1]) if of_val else None,
                    meta,
                )
            )
    return runs
