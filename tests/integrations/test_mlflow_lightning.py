import lightning.pytorch as pl
import pytest
import torch
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


def fit(logger, tmp_path, *, mlflow=None, **module):
    torch.manual_seed(0)
    data = torch.utils.data.DataLoader(torch.randn(4 * STEPS, 1), batch_size=4)
    callback = LossForecast("train_loss", mlflow=mlflow)
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=logger,
        callbacks=[callback],
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Line(**module), data)
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
