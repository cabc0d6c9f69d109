"""Sends what journals hold: of an earlier start of the same run, or by `scale-callbacks sync`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from scale_callbacks.integrations._mlflow_journal import Contents, held, read_journal
from scale_callbacks.integrations._mlflow_run import RunWriter


@dataclass(frozen=True)
class Delivery:
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


def deliver(path: Path, writer_of: Callable[[Contents], RunWriter], *, ends: bool = False) -> Delivery | None:
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
        return Delivery(
            path, writer.run_id, sent, len(contents.entries) - sent, contents.broken, removed=removed
        )


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
