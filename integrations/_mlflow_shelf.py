"""Where journals are kept, and which of them belong to a run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scale_callbacks.integrations._mlflow_journal import held, mine, read_journal
from scale_callbacks.integrations._mlflow_text import file_label

FOLDER = "SCALE_CALLBACKS_JOURNAL"  # environment variable: another folder, or "off"
OFF = ("off", "no", "false", "0")


def journal_folder(environ: Mapping[str, str]) -> Path | None:
    """Where journals are kept; None where the environment switches them off.

    `SCALE_CALLBACKS_JOURNAL`, else `scale-callbacks/mlflow` in `XDG_STATE_HOME` or in `~/.local/state`.
    """
    named = environ.get(FOLDER, "").strip()
    if named.lower() in OFF:
        return None
    if named:
        return Path(named).expanduser().absolute()
    state = Path(environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    return state.absolute() / "scale-callbacks" / "mlflow"


def journals_of(folder: Path, run_id: str, token: str | None = None) -> list[Path]:
    """The journals of a run that this process does not write, oldest first.

    Args:
        folder: Where they are.
        run_id: The run.
        token: What the run was called before it had its id, if it was.
    """
    found = list(folder.glob(f"{file_label(run_id)}.*.jsonl"))
    if token is not None:
        found += folder.glob(f"new-{file_label(token)}.*.jsonl")
    # One that was not renamed when the run had its id tells it in its head.
    found += [path for path in folder.glob("new-*.jsonl") if _head_of(path).get("run_id") == run_id]
    return sorted(set(found) - mine, key=lambda path: (str(_head_of(path).get("created", "")), path.name))


def written_elsewhere(folder: Path, run_id: str) -> bool:
    """Tell whether another process writes a journal of this run."""
    for path in folder.glob(f"{file_label(run_id)}.*.jsonl"):
        with contextlib.suppress(OSError):
            if path in mine:
                continue
            with held(path) as opened:
                if opened is None:
                    return True
    return False


def _head_of(path: Path) -> Mapping[str, Any]:
    if path in mine:
        return {}
    try:
        with path.open("rb") as file:
            return read_journal(file).head
    except OSError:
        return {}
