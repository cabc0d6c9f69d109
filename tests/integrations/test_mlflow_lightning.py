import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger

from scale_callbacks.integrations.lightning import LossForecast

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    # Lightning 2.6 asks torch 2.13 for a leaf of its trees in the old way.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
]

STEPS = 120


class Line(pl.LightningModule):
    def __init__(self, *, fail_at=STEPS + 1):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.fail_at = fail_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fail_at:
            raise RuntimeError("out of memory")
        loss = ((self.layer(batch) - 2 * batch) ** 2).mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fit(logger, tmp_path, *, mlflow=None, epochs=1, saver=None, checkpoint=None, **module):
    torch.manual_seed(0)
    data = torch.utils.data.DataLoader(torch.randn(4 * STEPS // epochs, 1), batch_size=4)
    callback = LossForecast("train_loss", mlflow=mlflow)
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=logger,
        callbacks=[callback, *([saver] if saver else [])],
        default_root_dir=tmp_path,
        enable_checkpointing=saver is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Line(**module), data, ckpt_path=checkpoint)
    return callback


def test_a_lightning_fit_leaves_each_forecast_once_in_its_logger_s_run(store_uri, store, tmp_path):
    logger = MLFlowLogger("fit", tracking_uri=store_uri, artifact_location=tmp_path.as_uri())
    callback = fit(logger, tmp_path)
    assert not callback.warnings
    steps = [point.step for point in store.get_metric_history(logger.run_id, "forecast/train_loss")]
    assert len(steps) > 20
    assert len(set(steps)) == len(steps)
    run = store.get_run(logger.run_id)
    assert run.data.metrics["forecast/train_loss"] == callback.forecast.value
    assert run.data.tags["forecast.finished"] == "true"
    assert run.info.status == "FINISHED"  # by the logger, whose run it is
    assert "forecast.png" in [file.path for file in store.list_artifacts(logger.run_id)]


def test_a_fit_that_fails_leaves_a_failed_run_of_its_own(store_uri, store, tmp_path, monkeypatch):
    name = f"failed {tmp_path.name}"
    experiment = store.create_experiment(name, artifact_location=tmp_path.as_uri())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(False, tmp_path, fail_at=80)
    (run,) = store.search_runs([experiment])
    assert run.info.status == "FAILED"
    assert run.data.tags["forecast.finished"] == "false"
    assert run.data.metrics["forecast/final"] > 0


@pytest.mark.parametrize(
    "every", [None, pytest.param(10, marks=pytest.mark.slow)], ids=["by epoch", "by step"]
)
def test_beside_autologging_each_forecast_is_logged_once_and_in_its_run(
    store_uri, store, tmp_path, every, monkeypatch
):
    import mlflow

    name = f"autolog {tmp_path.name}"
    experiment = store.create_experiment(name, artifact_location=tmp_path.as_uri())
    mlflow.set_tracking_uri(store_uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)  # set_experiment() would hold for later tests, too
    options = {} if every is None else {"log_every_n_step": every}
    mlflow.pytorch.autolog(log_models=False, checkpoint=False, silent=True, **options)
    try:
        callback = fit(False, tmp_path, epochs=3)
    finally:
        mlflow.pytorch.autolog(disable=True, silent=True)
    (run,) = store.search_runs([experiment])
    assert run.info.status == "FINISHED"
    expected = [point.step for point in callback._watch.monitor.history]
    assert len(expected) > 20
    for key in ("forecast/train_loss", "forecast/train_loss_low", "forecast/train_loss_high"):
        points = store.get_metric_history(run.info.run_id, key)
        assert sorted(point.step for point in points) == expected
    # Autologging's own records are there, untouched.
    assert len(store.get_metric_history(run.info.run_id, "train_loss")) >= 3
    assert run.data.params["optimizer_name"] == "SGD"
    assert run.data.params["forecast.monitor"] == "train_loss"
    assert not callback.warnings


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_fit_resumed_from_a_checkpoint_goes_on_in_the_run_of_its_own(
    store_uri, store, tmp_path, monkeypatch
):
    name = f"resumed {tmp_path.name}"
    experiment = store.create_experiment(name, artifact_location=tmp_path.as_uri())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    savers = [ModelCheckpoint(tmp_path, every_n_train_steps=60) for _ in range(2)]
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(False, tmp_path, fail_at=80, saver=savers[0])
    (checkpoint,) = tmp_path.glob("*.ckpt")
    callback = fit(False, tmp_path, saver=savers[1], checkpoint=checkpoint)
    (run,) = store.search_runs([experiment])
    assert run.info.status == "FINISHED"
    steps = [point.step for point in store.get_metric_history(run.info.run_id, "forecast/train_loss")]
    assert steps == [point.step for point in callback._watch.monitor.history]
    assert min(steps) < 60 < max(steps)
