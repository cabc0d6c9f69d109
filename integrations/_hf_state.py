"""A callback's state in the checkpoint folders of a Transformers trainer: one JSON file of its own."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

VERSION = 1
LATE = 50  # rows that tell a run


def file_name(kind: str, monitor: str, twins: int = 0) -> str:
    """Name of the file: one for each kind of callback and watched metric, and for each of several alike."""
    number = f".{twins + 1}" if twins else ""
    return f"scale_callbacks.{kind}.{quote(monitor, safe='')}{number}.json"


def folder_just_saved(args: Any, state: Any) -> Path | None:
    """The folder of the checkpoint that the trainer has just written; None where it cannot be found."""
    name, root = f"checkpoint-{state.global_step}", Path(args.output_dir)
    trials = sorted(root.glob(f"*/{name}"), key=os.path.getmtime) if state.is_hyper_param_search else []
    folder = trials[-1] if trials else root / name
    return folder if folder.is_dir() else None


def write(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write the file so that it is there in full or not at all."""
    part = folder / f".{name}.{os.getpid()}.part"
    try:
        with part.open("w", encoding="utf-8") as file:
            json.dump({"version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / name)
    finally:
        part.unlink(missing_ok=True)


def read(folders: Iterable[Path], name: str) -> tuple[Path, dict[str, Any]] | None:
    """The state in the first of the folders that holds one.

    Raises:
        ValueError: the file is no state, or was written by a newer version of this package.
    """
    path = next((path for folder in folders if (path := folder / name).is_file()), None)
    if path is None:
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "version" not in content:
        raise ValueError(f"{path} holds no state")
    if content["version"] > VERSION:
        raise ValueError(
            f"{path} has version {content['version']}, this package reads {VERSION}: update scale-callbacks"
        )
    return path.parent, content


def fingerprint(log_history: list[Any]) -> str:
    """Short hash of what a run has logged of late: it tells one run's checkpoint from another's."""
    text = json.dumps([len(log_history), log_history[-LATE:]], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
