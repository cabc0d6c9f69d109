"""`scale-callbacks sync`: what was journalled for an MLflow run and could not be sent is sent."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def sync(
    run: Annotated[str, typer.Argument(help="A run's id, a journal, or a folder of journals.")],
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="The MLflow store, where it is not the one that the journal names."),
    ] = None,
) -> None:
    """Send to MLflow what a run has journalled and could not send: it was killed, or no server was up.

    A password is taken from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or from
    MLFLOW_TRACKING_URI: the journal has none. What the run has already is not sent again.
    """
    from scale_callbacks.integrations._mlflow_sync import find_journals

    console = Console(soft_wrap=True, highlight=False)
    try:
        paths = find_journals(run, os.environ)
    except (OSError, ValueError) as fault:
        raise typer.BadParameter(str(fault)) from fault
    done = [_sync_one(path, tracking_uri, console) for path in paths]
    if not all(done):
        raise typer.Exit(1)


def _sync_one(path: Path, uri: str | None, console: Console) -> bool:
    """Send one journal and say what became of it; False where it could not be sent."""
    from scale_callbacks.integrations._mlflow_sync import send_journal
    from scale_callbacks.integrations._mlflow_text import fault_text

    try:
        done = send_journal(path, uri=uri, environ=os.environ)
    except Exception as fault:
        console.print(f"{path.name}: not sent: {fault_text(fault)}", style="red", markup=False)
        if any(code in str(fault) for code in ("401", "UNAUTHENTICATED", "not authenticated")):
            console.print("set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD and try again")
        return False
    if done is None:
        console.print(f"{path.name}: a training is writing it, and sends it itself", markup=False)
        return True
    text = f"{path.name}: {done.sent} forecasts sent to run {done.run_id}"
    text += f", {done.known} were there already" if done.known else ""
    text += f", {done.broken} broken lines were left out" if done.broken else ""
    console.print(text + ("; the journal is removed" if done.removed else ""), markup=False)
    return True
