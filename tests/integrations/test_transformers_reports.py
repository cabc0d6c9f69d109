import gc
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import ProgressCallback, TrainerCallback

from scale_callbacks.integrations.transformers import LossForecastCallback, SaturationStoppingCallback
from tests.integrations.hf_runs import QUIET, Rewarded, trainer

pytestmark = [*QUIET, pytest.mark.usefixtures("few_forecasts")]


def history(callback: LossForecastCallback) -> list[tuple[int, float]]:
    assert callback._watch is not None
    return [(point.step, point.value) for point in callback._watch.monitor.history]


def points(store: Any, run_id: str, key: str = "forecast/loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in store.get_metric_history(run_id, key)]


def runs(store: Any) -> set[str]:
    return {run.info.run_id for run in store.search_runs(["0"], max_results=1000)}


def test_forecasts_are_in_the_run_of_the_trainers_mlflow_callback(
    tmp_path: Path, store: Any, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    before = runs(store)
    callback = LossForecastCallback()
    run = trainer(tmp_path, callback, report_to="mlflow", max_steps=30)
    for _ in range(2):  # the second training has a run of its own
        run.train()
        (new,) = runs(store) - before
        before.add(new)
        assert points(store, new) == history(callback)
        assert len(points(store, new, "loss")) == 30
        assert store.get_run(new).info.status == "FINISHED"
    assert callback.warnings == {}


@pytest.mark.slow
def test_active_run_takes_the_forecasts_and_stays_open(
    tmp_path: Path, store: Any, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    gc.collect()  # transformers' callback ends whatever run is active when it is deleted
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    mlflow.set_tracking_uri(store_uri)
    with mlflow.start_run() as active:
        callback = LossForecastCallback()
        trainer(tmp_path, callback, report_to="mlflow", max_steps=30).train()
        assert points(store, active.info.run_id) == history(callback)
        assert store.get_run(active.info.run_id).info.status == "RUNNING"


@pytest.mark.parametrize("asked", [None, True, False])
@pytest.mark.slow
def test_nothing_is_reported_unless_asked_for(
    tmp_path: Path, store: Any, store_uri: str, monkeypatch: pytest.MonkeyPatch, asked: bool | None
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    before = runs(store)
    callback = LossForecastCallback(mlflow=asked)
    trainer(tmp_path, callback, report_to="none", max_steps=30).train()
    new = runs(store) - before
    if asked:
        assert [points(store, run) for run in new] == [history(callback)]
    else:
        assert not new


@pytest.mark.slow
def test_run_of_our_own_is_gone_on_with_after_a_resume(
    tmp_path: Path, store: Any, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    before = runs(store)
    settings: dict[str, Any] = {"max_steps": 40, "save_strategy": "steps", "save_steps": 20}
    trainer(tmp_path, LossForecastCallback(mlflow=True), **settings).train()
    again = LossForecastCallback(mlflow=True)
    trainer(tmp_path, again, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    (new,) = runs(store) - before
    assert sorted(set(points(store, new))) == history(again)


@pytest.mark.slow
def test_training_that_fails_leaves_its_run_as_failed(
    tmp_path: Path, store: Any, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 20:
                raise KeyboardInterrupt

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    before = runs(store)
    callback = LossForecastCallback(mlflow=True)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, callback, Crash(), max_steps=30).train()
    callback.close()  # what the end of the program does
    (new,) = runs(store) - before
    assert store.get_run(new).info.status == "FAILED"
    assert points(store, new) == history(callback)


def test_tensorboard_has_the_forecasts_beside_the_loss(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback = LossForecastCallback()
    trainer(tmp_path, callback, report_to="tensorboard", max_steps=30).train()
    (folder,) = (tmp_path / "runs").iterdir()
    read = EventAccumulator(str(folder)).Reload()
    assert len(read.Scalars("train/loss")) == 30
    for key in ("train/forecast/loss", "train/forecast/loss_low", "train/forecast/loss_high"):
        assert [event.step for event in read.Scalars(key)] == [step for step, _ in history(callback)]
    values = [value for _, value in history(callback)]
    assert [event.value for event in read.Scalars("train/forecast/loss")] == pytest.approx(values)


class WandbCallback(TrainerCallback):
    """Takes rows as the callback of that name does, before ours are called."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.rows.append({**logs, "train/global_step": state.global_step})


def test_reporter_is_handed_the_forecasts_by_themselves(tmp_path: Path) -> None:
    callback, reporter = LossForecastCallback(), WandbCallback()
    trainer(tmp_path, reporter, callback, max_steps=30).train()
    told = [row for row in reporter.rows if "forecast/loss" in row]
    assert [(row["train/global_step"], row["forecast/loss"]) for row in told] == history(callback)
    assert all("loss" not in row for row in told)
    assert sum("loss" in row for row in reporter.rows) == 30


def test_reporter_that_fails_is_counted_and_the_others_are_served(tmp_path: Path) -> None:
    class Broken(WandbCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "forecast/loss" in logs:
                raise ConnectionError("offline")

    callback = LossForecastCallback()
    run = trainer(tmp_path, Broken(), callback, max_steps=30, disable_tqdm=False)
    run.train()
    assert callback.warnings == {"the forecast was not reported": len(history(callback))}


@pytest.mark.slow
def test_weights_and_biases_has_the_forecasts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged: list[dict[str, Any]] = []
    log = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run,
        "log",
        lambda self, data, *a, **k: (logged.append(data), log(self, data, *a, **k)),
    )
    callback = LossForecastCallback()
    trainer(tmp_path, callback, report_to="wandb", max_steps=30).train()
    assert wandb.run.summary["train/forecast/loss"] == history(callback)[-1][1]
    wandb.finish()
    told = [
        (row["train/global_step"], row["train/forecast/loss"])
        for row in logged
        if "train/forecast/loss" in row
    ]
    assert told == history(callback)


def test_progress_bar_shows_the_forecast(tmp_path: Path) -> None:
    shown: list[str] = []

    class Look(TrainerCallback):
        bar: Any = None

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bar = next(c for c in run.callback_handler.callbacks if isinstance(c, ProgressCallback))
            shown.append(bar.training_bar.postfix or "")

    loss, reward = LossForecastCallback(), SaturationStoppingCallback()
    run = trainer(tmp_path, loss, reward, Look(), kind=Rewarded, max_steps=30, disable_tqdm=False)
    run.train()
    assert shown[0] == ""
    step, value = history(loss)[-2]
    assert f"forecast/loss={value:.4g} [" in shown[step]
    assert "forecast/reward=" in shown[-1]
    hidden = trainer(
        tmp_path, LossForecastCallback(progress_bar=False), Look(), disable_tqdm=False, max_steps=30
    )
    run, shown[:] = hidden, []
    hidden.train()
    assert set(shown) == {""}


@pytest.mark.parametrize(
    "strategy", ["no", *(pytest.param(strategy, marks=pytest.mark.slow) for strategy in ("steps", "epoch"))]
)
def test_notebook_table_has_a_column_for_the_forecast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    fake = ModuleType("IPython.display")
    fake.HTML, fake.display = str, lambda *_, **__: Display()  # type: ignore[attr-defined]
    package = ModuleType("IPython")
    package.display = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    from transformers.utils.notebook import NotebookProgressCallback

    tables: list[Any] = []

    class Kept(NotebookProgressCallback):
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            tables.append(self.training_tracker.inner_table)
            super().on_train_end(*args, **kwargs)

    callback = LossForecastCallback()
    run = trainer(tmp_path, callback, eval_strategy=strategy, eval_steps=10, max_steps=40)
    run.remove_callback(ProgressCallback)
    run.add_callback(Kept())
    run.train()
    head, *rows = tables[0]
    column = head.index("Forecast")
    value = history(callback)[-1][1]
    assert rows[-1][column].startswith(f"{value:.4g} [")
    assert len(rows) == {"no": 40, "steps": 4, "epoch": 2}[strategy]
    assert "Training Loss" in head
    assert callback.warnings == {}


class Display:
    def update(self, *_: Any) -> None: ...
