"""The command line: `scale-callbacks COMMAND`; each command has a file of its own in `commands`."""

import typer

from scale_callbacks.commands.backtest import backtest
from scale_callbacks.commands.replay import replay
from scale_callbacks.commands.report import report
from scale_callbacks.commands.sync import sync
from scale_callbacks.commands.watch import watch

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)


@app.callback()
def main() -> None:
    """Forecasts of a training run's final loss."""


app.command()(backtest)
app.command()(replay)
app.command()(report)
app.command()(sync)
app.command()(watch)


if __name__ == "__main__":
    app()
