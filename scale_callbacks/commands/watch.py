"""`scale-callbacks watch`: a run under way, followed from another terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from scale_callbacks.commands._common import Metric, TrackingUri, fail, give_up_soon, one_line_errors, say
from scale_callbacks.sinks import sentence

if TYPE_CHECKING:
    from scale_callbacks.commands._runs import Watched

Run = Annotated[str, typer.Argument(help="The file of a JsonlSink, or mlflow:RUN_ID.")]


def watch(
    run: Run,
    metric: Metric = None,
    tracking_uri: TrackingUri = None,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Draw the run as it stands, and end.")] = False,
) -> None:
    """Follow a run from another terminal: redrawn as it goes on, until it ends or Ctrl-C is pressed."""
    from scale_callbacks.commands._runs import watched

    console = Console()
    give_up_soon()
    with one_line_errors():
        followed = watched(run, tracking_uri, metric)
        if once:
            picture = _picture(console, followed)
            console.print(picture)
            if isinstance(picture, Text):
                fail(f"{run} tells of no forecast yet", code=1)
            return
        try:
            if console.is_terminal:
                _redraw(console, followed, interval)
            else:
                _print_lines(console, followed, interval)
        except KeyboardInterrupt:
            return


def _redraw(console: Console, followed: Watched, interval: float) -> None:
    with Live(_picture(console, followed), console=console, auto_refresh=False) as live:
        while not followed.ended:
            time.sleep(interval)
            live.update(_picture(console, followed), refresh=True)


def _print_lines(console: Console, followed: Watched, interval: float) -> None:
    """Into a pipe or a file nothing can be redrawn: a line a forecast, and the whole picture at the end."""
    said = -1
    while True:
        summary = followed.look()
        if summary is not None and summary.forecast is not None and summary.forecast.step != said:
            said = summary.forecast.step
            say(console, sentence(summary.name, summary.forecast))
            sys.stdout.flush()
        if followed.ended:
            break
        time.sleep(interval)
    console.print(_picture(console, followed))


def _picture(console: Console, followed: Watched) -> RenderableType:
    from scale_callbacks.commands._screen import screen

    summary = followed.look()
    if summary is None:
        return Text("no forecast yet: the first one comes after a fiftieth of the run")
    state = "the run has ended" if followed.ended else "Ctrl-C to leave; the run goes on"
    return screen(summary, width=min(console.width, 110), height=console.height, state=state)
