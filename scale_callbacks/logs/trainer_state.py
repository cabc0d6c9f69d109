"""Hugging Face: `trainer_state.json`, which every checkpoint of a Trainer holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scale_callbacks.logs.json_lines import collected, flat, salvaged
from scale_callbacks.logs.log import Series

KEY = '"log_history"'


class TrainerState:
    """The log history of a Trainer, a file cut off in the middle included.

    The train loss there is the mean over the steps since the last one, as the Trainer logs it; its names have
    no prefix: "loss", "learning_rate", "eval_loss", "reward".

    Args:
        path: the file, or the folder of a checkpoint.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no log history.
    """

    def __init__(self, path: Path) -> None:
        path = path / "trainer_state.json" if path.is_dir() else path
        self.label = f"{path.parent.name}/{path.name}" if path.parent.name else path.name
        self.notes: Counter[str] = Counter()
        text = path.read_text(encoding="utf-8", errors="replace")
        state = _state(text)
        where = text.find(KEY)
        if where < 0 or "[" not in text[where : where + 100]:
            raise ValueError(f"{path} holds no {KEY}: no trainer_state.json of a Hugging Face Trainer")
        history = state.get("log_history")
        if not isinstance(history, list):
            history = list(salvaged(text, text.index("[", where) + 1, self.notes))
        self._rows = [flat(row) for row in history if isinstance(row, dict)]
        self.planned = _count(state.get("max_steps"))
        done = _count(state.get("global_step"))
        self.ended = None if self.planned is None or done is None else done >= self.planned
        # The row at the end of the training sums it up: its "train_loss" is the mean over the whole run.
        keys = dict.fromkeys(key for row in self._rows if "train_runtime" not in row for key in row)
        self.names: Sequence[str] = [key for key in keys if key != "step"]
        if not set(self.names) - {"epoch"}:
            raise ValueError(f"{path}: its log history is empty; was anything logged (logging_steps)?")

    def is_mean(self, name: str) -> bool:
        """What a Trainer logs while training is the mean over the steps since; an evaluation is not."""
        return not name.startswith("eval_")

    def read(self, names: Sequence[str]) -> dict[str, Series]:
        """Steps and values of metrics."""
        return collected([self._rows], "step", names, self.notes)


def _state(text: str) -> dict[str, Any]:
    """The whole object; where it is cut off, what stands before or after the log history."""
    try:
        state = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def _count(value: Any) -> int | None:
    return (
        int(value) if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53 else None
    )
