import json
import logging
import math
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, get_scheduler

from scale_callbacks import LossForecaster, MemorySink, Schedule
from scale_callbacks.integrations._hf_state import folder_just_saved
from scale_callbacks.integrations.transformers import LossForecastCallback
from tests.integrations.hf_runs import (
    QUIET,
    InOrder,
    Line,
    Stream,
    trainer,
)

pytestmark = [*QUIET, pytest.mark.usefixtures("few_forecasts")]
FILE = "scale_callbacks.LossForecastCallback.loss.json"


def told(callback: LossForecastCallback) -> list[tuple[Any, ...]]:
    watch = callback._watch
    assert watch is not None
    return [(p.step, p.value, p.low, p.high) for p in watch.monitor.history]


def bins(callback: LossForecastCallback) -> Any:
    assert callback._watch is not None
    return callback._watch.monitor.forecaster.curve.bins()


def test_forecast_needs_nothing_but_the_callback(tmp_path: Path) -> None:
    callback = LossForecastCallback()
    run = trainer(tmp_path, callback)
    run.train()
    forecast = callback.forecast
    assert forecast is not None
    assert forecast.horizon == forecast.step == 60
    assert forecast.low < forecast.value < forecast.high
    assert callback.warnings == {}
    logged = [row["loss"] for row in run.state.log_history if "loss" in row]
    assert bins(callback).count.sum() == 60
    assert bins(callback).mean @ bins(callback).count == pytest.approx(sum(logged))


class Rates(TrainerCallback):
    """Notes what is applied."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])


def test_plan_is_the_live_schedulers_and_the_horizon_the_trainers(tmp_path: Path) -> None:
    callback, applied = LossForecastCallback(), Rates()
    trainer(
        tmp_path, callback, applied, lr_scheduler_type="cosine", warmup_steps=6, num_train_epochs=2
    ).train()
    plan = callback._watch.monitor.forecaster.schedule  # type: ignore[union-attr]
    assert plan is not None
    assert plan.horizon == len(applied.rates) == 40
    assert plan.lr(list(range(1, 41))) == pytest.approx(applied.rates)


@pytest.mark.parametrize(
    ("settings", "epoch"),
    [
        ({"num_train_epochs": 3, "gradient_accumulation_steps": 3}, 7.0),  # 20 batches, 7 updates
        ({"num_train_epochs": 1}, None),
        ({"max_steps": 50}, 20.0),
        ({"max_steps": 12, "data": Stream()}, None),
    ],
)
def test_several_epochs_are_told_to_the_forecaster(
    tmp_path: Path, settings: dict[str, Any], epoch: float | None
) -> None:
    callback = LossForecastCallback()
    trainer(tmp_path, callback, **settings).train()
    forecaster = callback._watch.monitor.forecaster  # type: ignore[union-attr]
    assert isinstance(forecaster, LossForecaster)
    assert forecaster.steps_per_epoch == epoch


def test_mean_over_the_logging_steps_lies_at_their_middle(tmp_path: Path) -> None:
    callback = LossForecastCallback()
    trainer(tmp_path, callback, logging_steps=5, logging_first_step=True).train()
    # Step 1 by itself, then 2 to 5, then 6 to 10, ...
    assert bins(callback).steps.tolist() == [1.0, 3.5, *range(8, 60, 5)]


class Accurate(Trainer):
    """Logs an accuracy with each evaluation, as `compute_metrics` would."""

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        if "eval_loss" in logs:
            logs["eval_accuracy"] = math.exp(-0.5 * logs["eval_loss"])
        super().log(logs, *args, **kwargs)


def test_accuracy_is_forecast_as_what_rises(tmp_path: Path) -> None:
    callback = LossForecastCallback("eval_accuracy", sinks=[sink := MemorySink()])
    run = trainer(tmp_path, callback, kind=Accurate, eval_strategy="steps", eval_steps=4)
    run.train()
    evaluated = [row["eval_accuracy"] for row in run.state.log_history if "eval_accuracy" in row]
    assert bins(callback).mean.tolist() == pytest.approx(evaluated)
    assert callback._watch.monitor.forecaster.settings["measure"] == "score"  # type: ignore[union-attr]
    forecasts = [record.forecast for record in sink.records if record.forecast is not None]
    assert forecasts
    assert all(f.low < f.value < f.high <= 1.0 for f in forecasts)
    assert callback.warnings == {}


def test_validation_loss_is_forecast_with_the_train_loss_beside_it(tmp_path: Path) -> None:
    callback = LossForecastCallback("eval_loss", sinks=[sink := MemorySink()])
    run = trainer(tmp_path, callback, eval_strategy="steps", eval_steps=4, eval_on_start=True)
    run.train()
    evaluated = [row["eval_loss"] for row in run.state.log_history if "eval_loss" in row]
    assert bins(callback).mean.tolist() == pytest.approx(evaluated)
    assert bins(callback).steps.tolist() == list(range(0, 61, 4))
    train = callback._watch.monitor.forecaster.train.bins()  # type: ignore[union-attr]
    logged = [row["loss"] for row in run.state.log_history if "loss" in row]
    assert train.mean[0] == pytest.approx(sum(logged[:4]) / 4)
    assert sink.records[-1].forecast == callback.forecast is not None


@pytest.mark.parametrize("logging_steps", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_resumed_run_forecasts_the_same_to_the_last_bit(tmp_path: Path, logging_steps: int) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 24, "max_steps": 64, "kind": InOrder}
    settings["logging_steps"] = logging_steps
    whole, resumed = LossForecastCallback(), LossForecastCallback()
    trainer(tmp_path, whole, **settings).train()
    assert (tmp_path / "checkpoint-24" / FILE).is_file()
    trainer(tmp_path, resumed, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-24"))
    assert told(resumed) == told(whole)
    assert resumed.forecast == whole.forecast is not None
    assert resumed.warnings == {}


@pytest.mark.slow
def test_checkpoint_is_found_wherever_it_was_moved(tmp_path: Path) -> None:
    whole, resumed = LossForecastCallback(), LossForecastCallback()
    trainer(tmp_path / "a", whole, save_strategy="steps", save_steps=30, kind=InOrder).train()
    other = trainer(tmp_path / "b", save_strategy="steps", save_steps=30, learning_rate=0.001)
    other.train()  # leaves a checkpoint of the same step where ours would be looked for
    (tmp_path / "a" / "checkpoint-30").rename(tmp_path / "moved")
    run = trainer(tmp_path / "b", resumed, kind=InOrder)
    run.train(resume_from_checkpoint=str(tmp_path / "moved"))
    assert told(resumed) == told(whole)


def test_checkpoint_made_without_the_callback_is_no_obstacle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, late = LossForecastCallback(), LossForecastCallback()
    trainer(tmp_path / "whole", whole).train()
    trainer(tmp_path, save_strategy="steps", save_steps=20).train()
    run = trainer(tmp_path, late, save_strategy="steps", save_steps=20)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert "has no state of LossForecastCallback('loss')" in caplog.text
    assert (tmp_path / "checkpoint-40" / FILE).is_file()
    assert told(late) == told(whole)  # what the trainer had logged was enough
    assert late.warnings == {}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer(folder, LossForecastCallback(), save_strategy="steps", save_steps=20, max_steps=20).train()
    return folder / "checkpoint-20"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"version": 99}', '{"version": 1, "step": 20}'])
def test_broken_state_is_counted_and_does_not_end_the_run(
    tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    shutil.copytree(checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / FILE).write_text(content)
    callback = LossForecastCallback()
    run = trainer(tmp_path, callback, max_steps=25)
    run.train(resume_from_checkpoint=str(tmp_path / "copy"))
    assert run.state.global_step == 25
    assert callback.warnings == {"the saved state cannot be used": 1}
    assert "the saved state cannot be used" in caplog.text
    assert callback.forecast is not None


@pytest.mark.slow
def test_new_plan_at_a_resume_is_followed_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    applied = Rates()
    trainer(tmp_path, LossForecastCallback(), applied, save_strategy="steps", save_steps=40).train()
    del applied.rates[40:]
    callback = LossForecastCallback()
    run = trainer(tmp_path, callback, applied, max_steps=80)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-40"))
    said = "resumed with another plan: the plan ends at step 80 instead of 60"
    assert callback.warnings == {said: 1}
    assert said in caplog.text
    assert callback.forecast is not None
    assert callback.forecast.horizon == callback.forecast.step == 80
    assert bins(callback).count.sum() == 80
    plan = callback._watch.monitor.forecaster.schedule  # type: ignore[union-attr]
    assert plan is not None
    assert plan.lr(list(range(1, 81))) == pytest.approx(applied.rates)


def test_state_is_one_whole_json_file_for_each_callback(tmp_path: Path) -> None:
    train, val = LossForecastCallback(), LossForecastCallback("eval_loss")
    trainer(
        tmp_path, train, val, save_strategy="steps", save_steps=30, eval_strategy="steps", eval_steps=10
    ).train()
    ours = sorted(path.name for path in (tmp_path / "checkpoint-30").glob("*scale_callbacks*"))
    assert ours == ["scale_callbacks.LossForecastCallback.eval_loss.json", FILE]
    content = json.loads((tmp_path / "checkpoint-30" / FILE).read_text())
    assert content["step"] == 30
    assert content["watch"]["monitor"]["last_step"] == 30


@pytest.mark.slow
def test_callbacks_that_watch_the_same_each_find_their_own_state(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 24, "max_steps": 48, "kind": InOrder}
    whole = [LossForecastCallback(level=0.5), LossForecastCallback(level=0.9)]
    trainer(tmp_path, *whole, **settings).train()
    resumed = [LossForecastCallback(level=0.5), LossForecastCallback(level=0.9)]
    trainer(tmp_path, *resumed, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-24"))
    assert told(resumed[0]) == told(whole[0]) != told(whole[1]) == told(resumed[1])


def test_trials_of_a_search_save_in_their_own_folders(tmp_path: Path) -> None:
    for folder in ("run-0", "run-1"):
        (tmp_path / folder / "checkpoint-5").mkdir(parents=True)
        os.utime(tmp_path / folder / "checkpoint-5", (len(folder), int(folder[-1])))
    args = SimpleNamespace(output_dir=str(tmp_path))
    state = SimpleNamespace(global_step=5, is_hyper_param_search=True)
    assert folder_just_saved(args, state) == tmp_path / "run-1" / "checkpoint-5"
    state = SimpleNamespace(global_step=5, is_hyper_param_search=False)
    assert folder_just_saved(args, state) is None


@pytest.mark.slow
def test_several_fits_with_one_callback_start_anew(tmp_path: Path) -> None:
    callback, alone = LossForecastCallback(), LossForecastCallback()
    trainer(tmp_path / "a", callback).train()
    first = told(callback)
    trainer(tmp_path / "b", callback, max_steps=40).train()
    trainer(tmp_path / "c", alone, max_steps=40).train()
    assert told(callback) == told(alone) != first
    assert callback.forecast == alone.forecast


def test_evaluation_before_and_after_training_is_not_watched(tmp_path: Path) -> None:
    callback = LossForecastCallback("eval_loss")
    run = trainer(tmp_path, callback, max_steps=10, eval_strategy="steps", eval_steps=5)
    run.evaluate()
    assert callback.forecast is None
    run.train()
    run.evaluate()
    assert bins(callback).steps.tolist() == [5, 10]
    assert callback.warnings == {}


@pytest.mark.parametrize(
    "settings", [{"num_train_epochs": 0.0}, {"max_steps": -1, "num_train_epochs": 1.0}, {"max_steps": 1}]
)
def test_runs_of_any_length_are_taken(tmp_path: Path, settings: dict[str, Any]) -> None:
    callback = LossForecastCallback()
    run = trainer(tmp_path, callback, **settings)
    run.train()
    assert run.state.global_step in (0, 1, 20)
    assert callback.warnings == {}


def test_name_that_is_never_logged_is_reported_with_the_names_that_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = LossForecastCallback("train_loss_")
    trainer(tmp_path, callback, max_steps=10).train()
    assert callback.warnings == {"train_loss_ was not logged": 1}
    said = [record.message for record in caplog.records if record.name == "scale_callbacks"]
    assert said == [
        "'train_loss_' was not logged, so nothing can be forecast. "
        "Logged were: loss, grad_norm, learning_rate"
    ]


def test_name_that_no_evaluation_logs_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = LossForecastCallback("eval_lozz")
    trainer(tmp_path, callback, max_steps=10, eval_strategy="steps", eval_steps=5).train()
    assert callback.warnings == {"eval_lozz was not logged": 1}
    assert "eval_loss" in caplog.text


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"logging_steps": 500, "max_steps": 20}, "set logging_steps=1"),
        ({"logging_strategy": "no", "max_steps": 20}, "set logging_steps=1"),
    ],
)
def test_too_few_rows_are_warned_of_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], remedy: str
) -> None:
    trainer(tmp_path, LossForecastCallback(), **settings).train()
    assert remedy in caplog.text


def plateau(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)


class Odd:
    """A scheduler of nobody's kind."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None: ...

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("make", [plateau, pytest.param(Odd, marks=pytest.mark.slow)])
def test_unknown_scheduler_is_taken_to_hold_its_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Any
) -> None:
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    settings = {"eval_strategy": "steps", "eval_steps": 10, "metric_for_best_model": "loss"}
    callback = LossForecastCallback()
    run = trainer(tmp_path, callback, optimizers=(optimizer, make(optimizer)), **settings)
    run.train()
    assert "taken to stay as it is" in caplog.text
    plan = callback._watch.monitor.forecaster.schedule  # type: ignore[union-attr]
    assert plan is not None
    assert set(plan.lr([1, 30, 60]).tolist()) == {0.05}
    assert callback.forecast is not None


@pytest.mark.slow
def test_given_plan_replaces_the_live_one(tmp_path: Path) -> None:
    plan = Schedule.cosine(1.0, 60)
    callback = LossForecastCallback(schedule=plan)
    trainer(tmp_path, callback).train()
    assert callback._watch.monitor.forecaster.schedule is plan  # type: ignore[union-attr]


@pytest.mark.slow
def test_nan_that_the_trainer_lets_through_is_counted(tmp_path: Path) -> None:
    class Sick(Line):
        calls = 0

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            self.calls += 1
            factor = float("nan") if self.calls in (10, 20) else 1.0
            return {"loss": super().forward(x, labels)["loss"] * factor}

    class Careful(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for p in kwargs["model"].parameters():
                torch.nan_to_num_(p.grad)

    for hidden in (True, False):
        callback = LossForecastCallback()
        run = trainer(tmp_path, callback, Careful(), logging_nan_inf_filter=hidden, max_grad_norm=0)
        run.model = run.model_wrapped = Sick()
        run.train()
        seen = sum(not math.isfinite(row["loss"]) for row in run.state.log_history if "loss" in row)
        assert seen == (0 if hidden else 51)  # the trainer's sum does not recover from a NaN
        assert callback.warnings.get("loss was not finite and left out", 0) == seen
        assert callback.forecast is not None


def test_gradient_that_was_not_finite_betrays_a_hidden_nan(tmp_path: Path) -> None:
    callback = LossForecastCallback()
    run = trainer(tmp_path, callback, max_steps=10)
    run.add_callback(_Log({"loss": 1.0, "grad_norm": float("nan")}))
    run.train()
    assert callback.warnings["grad_norm was not finite: the loss may not have been either"] == 1


class _Log(TrainerCallback):
    """Hands a row to all callbacks, as the trainer would."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.row = row

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            from scale_callbacks.integrations._hf_trainer import surroundings

            for other in surroundings(self).callbacks:
                other.on_log(args, state, control, logs=dict(self.row))


class BrokenSink:
    def write(self, record: Any, summary: Any) -> None:
        raise OSError("disk full")

    def close(self, summary: Any) -> None:
        raise OSError("disk full")


def test_no_fault_of_ours_ends_a_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = LossForecastCallback(sinks=[BrokenSink()])
    trainer(tmp_path, callback, max_steps=20).train()
    assert callback.warnings["BrokenSink failed to write"] > 1
    assert caplog.text.count("BrokenSink failed to write") == 1


@pytest.mark.parametrize("hook", ["row", "state", "ended", "load"])
def test_fault_in_any_hook_is_counted_and_training_goes_on(
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    hook: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(f"scale_callbacks.integrations._hf_watch.Watch.{hook}", fail)
    callback = LossForecastCallback()
    run = trainer(tmp_path, callback, save_strategy="steps", save_steps=5, max_steps=25)
    run.train(resume_from_checkpoint=str(checkpoint))
    assert run.state.global_step == 25
    assert any("boom" in record.message for record in caplog.records)
    assert set(callback.warnings.values()) == {1}


def test_checkpoint_that_cannot_be_written_into_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    callback = LossForecastCallback()
    trainer(tmp_path, callback, save_strategy="steps", save_steps=30).train()
    assert callback.warnings == {"the state was not saved": 2}
    assert not list(tmp_path.glob("checkpoint-*/*scale_callbacks*"))
    assert callback.forecast is not None


def test_early_stopping_of_transformers_works_beside_ours(tmp_path: Path) -> None:
    callback = LossForecastCallback("eval_loss")
    run = trainer(
        tmp_path,
        callback,
        EarlyStoppingCallback(early_stopping_patience=1),
        eval_strategy="steps",
        eval_steps=5,
        save_strategy="steps",
        save_steps=5,
        learning_rate=0.0,  # nothing gets better
        load_best_model_at_end=True,
    )
    run.train()
    assert run.state.global_step == 10
    assert callback.warnings == {}


@pytest.mark.slow
def test_callback_can_be_pickled_in_mid_training(tmp_path: Path) -> None:
    callback = LossForecastCallback(sinks=[MemorySink()])
    trainer(tmp_path, callback, max_steps=10).train()
    copy = pickle.loads(pickle.dumps(callback))
    assert copy.monitor == "loss"
    trainer(tmp_path, copy, max_steps=10).train()
    assert copy.forecast == callback.forecast


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"monitor": ""}, "monitor=''"),
        ({"horizon": 0}, "horizon=0"),
        ({"level": 1.0}, r"level=1\.0"),
        ({"schedule": Schedule.constant(1.0, 10), "horizon": 20}, "horizon=20"),
    ],
)
def test_bad_settings_are_refused_at_once(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        LossForecastCallback(**settings)
    with pytest.raises(TypeError, match="sink"):
        LossForecastCallback(sinks=[1])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="schedule"):
        LossForecastCallback(schedule=get_scheduler)  # type: ignore[arg-type]


@pytest.mark.slow
def test_data_without_a_length_need_max_steps_as_ever(tmp_path: Path) -> None:
    callback = LossForecastCallback()
    with pytest.raises(ValueError, match="max_steps"):
        trainer(tmp_path, callback, data=Stream(), num_train_epochs=1).train()
    trainer(tmp_path, callback, data=Stream(), max_steps=20).train()
    assert callback.forecast is not None
    assert callback.forecast.horizon == 20


def test_both_callbacks_are_named_by_the_package() -> None:
    import scale_callbacks
    from scale_callbacks.integrations import transformers

    assert scale_callbacks.LossForecastCallback is transformers.LossForecastCallback
    assert scale_callbacks.SaturationStoppingCallback is transformers.SaturationStoppingCallback


@pytest.mark.slow
def test_rows_of_nested_calls_reach_the_right_callback(tmp_path: Path) -> None:
    """A model trained inside another's callback has a trainer of its own."""
    inner = LossForecastCallback()

    class Nested(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer(tmp_path / "inner", inner, max_steps=10).train()

    outer = LossForecastCallback()
    trainer(tmp_path / "outer", Nested(), outer, max_steps=20).train()
    assert bins(inner).count.sum() == 10
    assert bins(outer).count.sum() == 20


def test_log_level_of_the_package_is_the_users(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="scale_callbacks"):
        trainer(tmp_path, LossForecastCallback("nothing"), max_steps=10).train()
    assert not [record for record in caplog.records if record.name == "scale_callbacks"]
