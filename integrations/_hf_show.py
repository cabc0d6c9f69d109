"""Where a Transformers user sees forecasts: progress bars, the reporting callbacks, the MLflow run."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from scale_callbacks.integrations._hf_trainer import Surroundings
from scale_callbacks.sinks import Record, Summary

_log = logging.getLogger("scale_callbacks")

REPORTERS = ("TensorBoardCallback", "WandbCallback")  # one call of `on_log` more does them no harm


class Outlets:
    """Sink that shows each forecast where the trainer shows its own numbers.

    Args:
        around: the trainer's other callbacks.
        note: told of a fault by name; an outlet that fails does not keep the others from being served.
        progress_bar: show the forecast on the trainer's bar.
        make_mlflow: makes the MLflow sink, once the first row is logged; None for no MLflow.

    Attributes:
        outcome: how the run ended if badly, "FAILED" or "KILLED".
    """

    inline = True  # the trainer's own reporting belongs on its thread

    def __init__(
        self,
        around: Surroundings,
        note: Callable[[str, Exception], None],
        *,
        progress_bar: bool = True,
        make_mlflow: Callable[[], Any] | None = None,
    ) -> None:
        self.around = around
        self.outcome: str | None = None
        self._note = note
        self._progress_bar = progress_bar
        self._make_mlflow = make_mlflow
        self._mlflow: Any = None
        self._now: tuple[Any, Any, Any] | None = None
        self._text = ""

    def open(self, args: Any, state: Any, control: Any) -> None:
        """Take the present of the trainer; at the first row, MLflow's run is there to be found."""
        self._now = args, state, control
        if self._make_mlflow is not None:
            make, self._make_mlflow = self._make_mlflow, None
            try:
                self._mlflow = make()
            except Exception as fault:
                self._note("no MLflow sink", fault)

    def write(self, record: Record, summary: Summary) -> None:
        """Show a forecast, on the training thread."""
        if self._now is None:
            return
        if self._mlflow is not None:
            self._mlflow.write(record, summary)
        self._try("the forecast was not reported", self._report, record.metrics)
        if self._progress_bar and record.forecast is not None:
            f = record.forecast
            self._text = f"{f.value:.4g} [{f.low:.4g}, {f.high:.4g}]"
            self._try("the forecast is not on the progress bar", self._show, record.name)

    def mlflow_state(self) -> dict[str, Any] | None:
        """What a resumed run needs to go on with its MLflow run."""
        return None if self._mlflow is None else self._mlflow.state_dict()

    def evaluated(self, args: Any, state: Any) -> None:
        """In a notebook, rows are written at evaluations where there are any."""
        if self._text:
            self._try("the forecast is not in the notebook", self._tabulate, args, state)

    def close(self, summary: Summary) -> None:
        """Send what is left."""
        if self._mlflow is not None:
            if self.outcome is not None:
                self._mlflow.outcome = self.outcome
            self._mlflow.close(summary)

    def _try(self, what: str, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as fault:
            self._note(what, fault)

    def _report(self, metrics: Mapping[str, float]) -> None:
        # User callbacks run after the reporting ones: what we added to the row would come too late for them.
        assert self._now is not None
        for name in REPORTERS:
            for reporter in self.around.named(name):
                reporter.on_log(*self._now, logs=dict(metrics))

    def _show(self, name: str) -> None:
        assert self._now is not None
        for callback in self.around.named("ProgressCallback"):
            bar = getattr(callback, "training_bar", None)
            if bar is not None:
                # Several of ours may share the bar.
                shown = bar.__dict__.setdefault("_forecasts", {})
                shown[f"forecast/{name}"] = self._text
                bar.set_postfix(shown, refresh=False)
        args, state, _ = self._now
        if _value(args.eval_strategy) == "no":
            self._tabulate(args, state)

    def _tabulate(self, args: Any, state: Any) -> None:
        """Write into the row that the notebook's own callback, which comes after us, is about to write."""
        for callback in self.around.named("NotebookProgressCallback"):
            table = getattr(callback, "training_tracker", None)
            if table is None:
                continue
            first = callback.first_column
            row = {first: int(state.epoch) if first == "Epoch" else state.global_step}
            columns = table.inner_table[0] if table.inner_table else []
            row |= {column: "No log" for column in columns if column not in row}
            table.write_line(row | {"Forecast": self._text})


def mlflow_sink(mode: bool | None, resume: Mapping[str, Any] | None = None) -> Any:
    """The sink for the run that the trainer's MLflow callback, the program or the environment names."""
    from scale_callbacks.integrations.mlflow import resolve_sink

    return resolve_sink(mode=mode, resume=resume)


def _value(strategy: Any) -> str:
    return str(getattr(strategy, "value", strategy))
