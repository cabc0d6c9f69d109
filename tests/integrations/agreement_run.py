"""What several ranks agree on, or cannot: plain torch.distributed over gloo."""

import logging
import math
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist

from scale_callbacks.integrations._agreement import Agreement

RANK = int(os.environ["RANK"])
WORLD = int(os.environ["WORLD_SIZE"])


class Reports(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def sound() -> dict[str, Any]:
    agreement = Agreement()
    return {
        "wanted by rank 0": agreement.broadcast(RANK == 0),
        "wanted by others": agreement.broadcast(RANK != 0),
        "mean": agreement.mean(float(RANK)),
        "mean of one": agreement.mean(3.0 if RANK == 0 else math.nan),
        "mean of none": str(agreement.mean(math.inf)),
        "rounds": [agreement.mean(10.0 * i + RANK) for i in range(5)],
        **told(agreement),
    }


def comes_late() -> dict[str, Any]:
    """Within the timeout: nothing is lost but the time."""
    agreement = Agreement(timeout=60)
    time.sleep(0.5 * RANK)
    first = agreement.broadcast(True)
    time.sleep(0.5 * RANK)
    return {"first": first, "second": agreement.mean(float(RANK)), **told(agreement)}


def never_comes() -> dict[str, Any]:
    """The last rank does not ask at all: the others wait once."""
    agreement = Agreement(timeout=1.0)
    if RANK == WORLD - 1:
        return told(agreement)
    return asked(agreement)


def comes_too_late() -> dict[str, Any]:
    """The last rank asks when the others have given up: it does not wait for them."""
    agreement = Agreement(timeout=1.0)
    dist.barrier()
    if RANK == WORLD - 1:
        time.sleep(5)
    return asked(agreement)


def leaves() -> dict[str, Any]:
    """The last rank runs out of data: it says so, and the others notice without waiting."""
    agreement = Agreement(timeout=60)
    before = agreement.broadcast(True)
    if RANK == WORLD - 1:
        agreement.close()
        return {"before": before, **told(agreement)}
    return {"before": before, **asked(agreement)}


def forgets() -> dict[str, Any]:
    """The last rank leaves out a question that the others ask."""
    agreement = Agreement(timeout=4.0)
    before = agreement.broadcast(True)
    if RANK == WORLD - 1:
        return {"before": before, "agreement": agreement, **told(agreement)}
    return {"before": before, **asked(agreement)}


def differs() -> dict[str, Any]:
    """The last rank asks something else."""
    agreement = Agreement(timeout=60)
    agreement.mean(0.0)
    answer = agreement.mean(5.0) if RANK == WORLD - 1 else agreement.broadcast(True)
    return {"answer": answer, **told(agreement)}


def own_groups() -> dict[str, Any]:
    """Our group, made on some ranks only, leaves the user's own groups alone."""
    agreement = Agreement(timeout=0.5)
    if RANK == 0:
        agreement.broadcast(True)
    group = dist.new_group()
    numbers = torch.ones(1)
    dist.all_reduce(numbers, group=group)
    return {"sum": numbers.item()}


def dies() -> dict[str, Any]:
    """The last rank is killed between two questions: the others go on."""
    agreement = Agreement(timeout=60)
    before = agreement.mean(float(RANK))
    if RANK == WORLD - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"before": before, **asked(agreement)}


def asked(agreement: Agreement) -> dict[str, Any]:
    """Ask several times; say what came of it and how long it took."""
    began = time.monotonic()
    answers = [agreement.broadcast(True), agreement.broadcast(True), agreement.mean(float(RANK))]
    return {"answers": answers, "seconds": time.monotonic() - began, **told(agreement)}


def told(agreement: Agreement) -> dict[str, Any]:
    return {"off": agreement.off, "faults": agreement.faults}


CASES: list[Callable[[], dict[str, Any]]] = [
    sound,
    comes_late,
    never_comes,
    comes_too_late,
    leaves,
    forgets,
    differs,
    own_groups,
]
KEPT: list[Any] = []  # agreements that are not to end with their case


def run(cases: list[Callable[[], dict[str, Any]]]) -> dict[str, Any]:
    """What came of each case, and what was reported."""
    reports = Reports()
    logging.getLogger("scale_callbacks").addHandler(reports)
    results = {}
    for case in cases:
        reports.texts = []
        result = case()
        KEPT.append(result.pop("agreement", None))
        results[case.__name__] = {**result, "reports": reports.texts}
        if case is not dies:
            dist.barrier()
    return results
