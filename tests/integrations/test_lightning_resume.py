"""What a resumed Lightning training goes on with: its plan, even a changed one, and its MLflow run."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from scale_callbacks import LossForecast, SaturationRule, SaturationStopping
from tests.integrations.lightning_runs import QUIET, Net, data, trainer

pytestmark = QUIET


@pytest.fixture(autouse=True)
def few_forecasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scale_callbacks.due.LINEAR", 1 / 8)
    monkeypatch.setattr("scale_callbacks.due.RATIO", 1.5)


class Cosine(Net):
    """Decays over the steps it is told."""

    def __init__(self, steps: int, lr: float = 0.05) -> None:
        super().__init__(lr)
        self.steps = steps

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for state in checkpoint["lr_schedulers"]:
            state["T_max"] = self.steps  # the longer run decays longer


def fit(callback: pl.Callback, net: Net, steps: int, folder: Path, ckpt: str | None = None) -> pl.Trainer:
    saver = ModelCheckpoint(folder, every_n_train_steps=20, save_top_k=-1, filename="{step}")
    loop = trainer(callback, saver, enable_checkpointing=True, max_steps=steps)
    loop.fit(net, data(batches=200), ckpt_path=None if ckpt is None else folder / ckpt)
    return loop


def plan(callback: LossForecast) -> Any:
    assert callback._watch is not None
    return callback._watch.monitor.forecaster.schedule


def test_longer_plan_at_resume_is_recognised_and_the_past_stays(tmp_path: Path, caplog: Any) -> None:
    first, longer = LossForecast(), LossForecast()
    fit(first, Cosine(100), 100, tmp_path)
    fit(longer, Cosine(160), 160, tmp_path, "step=60.ckpt")
    assert "resumed with another plan: the plan ends at step 160 instead of 100" in caplog.text
    assert len(longer.warnings) == 1
    assert longer.forecast is not None
    assert longer.forecast.horizon == 160
    before = list(range(1, 61))
    assert plan(longer).lr(before).tolist() == pytest.approx(plan(first).lr(before).tolist())
    assert plan(longer).area(60) == pytest.approx(plan(first).area(60))
    past = [point for point in first._watch.monitor.history if point.step <= 60]  # type: ignore[union-attr]
    assert longer._watch.monitor.history[: len(past)] == past  # type: ignore[union-attr]
    assert longer._watch.monitor.history[-1].step == 160  # type: ignore[union-attr]


def test_shorter_plan_at_resume(tmp_path: Path) -> None:
    first, shorter = LossForecast(), LossForecast()
    fit(first, Cosine(100), 100, tmp_path)
    fit(shorter, Cosine(70), 70, tmp_path, "step=40.ckpt")
    assert plan(shorter).horizon == 70
    assert shorter._watch.monitor.history[-1].step == 70  # type: ignore[union-attr]


def test_other_rate_at_resume_is_followed(tmp_path: Path, caplog: Any) -> None:
    class Slower(Net):
        def on_train_start(self) -> None:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = 0.01

    first, slower = LossForecast(), LossForecast()
    fit(first, Net(), 100, tmp_path)
    fit(slower, Slower(), 100, tmp_path, "step=60.ckpt")  # set after our own hook: seen at the next forecast
    assert plan(slower).lr([60, 100]).tolist() == pytest.approx([0.05, 0.01])
    assert caplog.text.count("learning rate to come is another one") == 1


def test_rate_set_by_hand_in_mid_training_is_followed(tmp_path: Path) -> None:
    class ByHand(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.global_step == 50:
                self.trainer.optimizers[0].param_groups[0]["lr"] = 0.005

    callback, net = LossForecast(), ByHand()
    fit(callback, net, 200, tmp_path)
    assert net.rates[49:51] == [0.05, 0.005]
    steps = [40, 50, 100, 200]
    assert plan(callback).lr(steps).tolist() == pytest.approx([0.05, 0.05, 0.005, 0.005])
    assert sum(callback.warnings.values()) == 1


def test_plan_that_is_followed_as_planned_is_never_read_again(tmp_path: Path) -> None:
    callback = LossForecast()
    fit(callback, Cosine(200), 200, tmp_path)
    assert callback.warnings == {}


def steps_of(store: Any, run_id: str, key: str) -> list[int]:
    return [point.step for point in store.get_metric_history(run_id, key)]


def test_mlflow_run_goes_on_after_a_resume_and_holds_two_metrics_apart(
    store: Any, store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    name = f"lightning {tmp_path.name}"
    experiment = store.create_experiment(name, artifact_location=(tmp_path / "artifacts").as_uri())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)

    class Both(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("reward", float(self.global_step))
            return super().training_step(batch, batch_idx)

    def run(steps: int, ckpt: Path | None = None) -> LossForecast:
        callback = LossForecast(horizon=120)
        reward = SaturationStopping(rule=SaturationRule(stop_on=()), horizon=120)
        loop = trainer(callback, reward, max_steps=steps)
        loop.fit(Both(), data(batches=200), ckpt_path=ckpt)
        loop.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return callback

    run(70)
    last = run(120, tmp_path / "70.ckpt")
    (found,) = store.search_runs([experiment])
    run_id = found.info.run_id
    assert found.info.status == "FINISHED"
    assert found.data.params["forecast.monitor"] == "train_loss"
    assert found.data.params["forecast-reward.monitor"] == "reward"
    made = [point.step for point in last._watch.monitor.history]  # type: ignore[union-attr]
    assert made[-1] == 120
    assert steps_of(store, run_id, "forecast/train_loss") == made
    for key in found.data.metrics:
        steps = steps_of(store, run_id, key)
        assert len(steps) == len(set(steps)), key
    assert {
        "forecast/reward",
        "forecast-reward/final",
        "forecast/final",
        "lr_area",
    } <= found.data.metrics.keys()
