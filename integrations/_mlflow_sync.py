"""Sends what journals hold: of an earlier start of the same run, or by `scale-callbacks sync`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from scale_callbacks.integrations._mlflow_journal import Contents, held, read_journal
from scale_callbacks.integrations._mlflow_open import RunOpener, Target
from scale_callbacks.integrations._mlflow_run import RunWriter
from scale_callbacks.integrations._mlflow_server import reachable
from scale_callbacks.integrations._mlflow_shelf import journal_folder, journals_of
from scale_callbacks.integrations._mlflow_text import public_address, without_secrets


@dataclass(frozen=True)
class Delivered:
    """What became of a journal.

    Attributes:
        path: the journal.
        run_id: the run it was sent to; None where it was not.
        sent: forecasts that the run did not have.
        known: forecasts that it had already.
        broken: lines that could not be read.
        removed: the journal is gone; else it is marked as sent.
    """

    path: Path
    run_id: str | None = None
    sent: int = 0
    known: int = 0
    broken: int = 0
    removed: bool = False


def find_journals(run: str, environ: Mapping[str, str]) -> list[Path]:
    """The journals that are meant by a run's id, a file or a folder.

    Raises:
        ValueError: there are none; says which there are.
    """
    path = Path(run)
    if path.is_file():
        return [path]
    if path.is_dir():
        if found := sorted(path.glob("*.jsonl")):
            return found
        raise ValueError(f"no journal in {path}: nothing is left to be sent from there")
    folder = journal_folder(environ)
    if folder is None:
        raise ValueError(f"no file or folder {run}, and SCALE_CALLBACKS_JOURNAL switches journals off")
    if found := journals_of(folder, run):
        return found
    names = sorted(path.name for path in folder.glob("*.jsonl"))
    there = f"there are: {', '.join(names[:20])}" if names else "there is none: nothing is left to be sent"
    raise ValueError(f"no journal of a run {run} in {folder}; {there}")


def send_journal(path: Path, *, uri: str | None, environ: Mapping[str, str]) -> Delivered | None:
    """Send a journal to the store that it names.

    Args:
        path: The journal.
        uri: The store's address, where it is another by now.
        environ: Gives the address with its password: the journal has none.

    Returns:
        What was done; None where a process writes to the journal.

    Raises:
        ConnectionError, ValueError: there is no server, or no address.
        Exception: what MLflow raises.
    """
    return deliver(path, lambda contents: _writer_for(contents, uri, environ), ends=True)


def _writer_for(contents: Contents, uri: str | None, environ: Mapping[str, str]) -> RunWriter:
    head = contents.head
    store, set_here = head.get("store"), environ.get("MLFLOW_TRACKING_URI")
    address = uri or (set_here if set_here and public_address(set_here) == store else store)
    if not address:
        raise ValueError("the journal names no store: give --tracking-uri")
    if not reachable(address, patience=5.0):
        raise ConnectionError(f"no server answers at {without_secrets(address)}")
    experiment_id, token, created = (head.get(name) for name in ("experiment_id", "token", "created"))
    target = Target(
        address,
        None if head.get("run_id") is None else str(head["run_id"]),
        own=head.get("own") is True,
        experiment=str(head.get("experiment") or "Default"),
        experiment_id=None if experiment_id is None else str(experiment_id),
        tried=True,
    )
    if token and created:
        target = replace(target, token=str(token), created=int(created))
    return RunWriter(RunOpener(target))


def deliver(
    path: Path, writer_of: Callable[[Contents], RunWriter], *, ends: bool = False
) -> Delivered | None:
    """Send a journal's unsent entries in order, with their own times; then remove or mark it.

    Args:
        path: The journal.
        writer_of: The writer for what the journal says of its run.
        ends: End the run as the journal says it ended, where it was started here.

    Returns:
        What was done; None where another process writes to the journal.

    Raises:
        OSError: The journal cannot be read.
        Exception: What MLflow raises; the journal stays as it is.
    """
    with held(path) as opened:
        if opened is None:
            return None
        file, removable = opened
        contents = read_journal(file)
        if not contents.head and not contents.entries:
            raise ValueError(f"{path} holds no journal")
        writer = writer_of(contents)
        writer.open()
        _send_settings(writer, contents)
        sent = writer.send(contents.entries)
        if ends and contents.head.get("own") is True and contents.head.get("end"):
            writer.end(str(contents.head["end"]))
        removed = removable and _forget(path)
        if not removed and contents.entries and file.writable():
            _mark(file, contents)
        known = sum(bool(entry.metrics) for entry in contents.entries) - sent
        return Delivered(path, writer.run_id, sent, known, contents.broken, removed=removed)


def _send_settings(writer: RunWriter, contents: Contents) -> None:
    settings = contents.head.get("settings")
    if not isinstance(settings, dict):
        return
    try:
        writer.send_settings({str(name): str(text) for name, text in settings.items()})
    except Exception as fault:
        if getattr(fault, "error_code", "") != "INVALID_PARAMETER_VALUE":  # else the run has others
            raise


def _forget(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _mark(file: IO[bytes], contents: Contents) -> None:
    try:
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + json.dumps({"sent": contents.last}).encode() + b"\n")
    except OSError:
        pass  # it is asked about again the next time
