"""Run against an installed wheel, with no sources in reach: a real training with the callback."""

import importlib.util
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import scale_callbacks
from scale_callbacks import JsonlSink, LossForecast


class Line(lightning.LightningModule):
    """A line fitted by gradient descent."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch):
        """Log the squared error."""
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.layer(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        """Plain gradient descent at one rate."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def main() -> None:
    """Train, and look at what the callback left."""
    package = Path(scale_callbacks.__file__).parent
    assert package.parent.name == "site-packages", package
    assert (package / "py.typed").is_file()
    assert list((package / "priors").glob("*.json"))
    assert importlib.util.find_spec("integrations") is None, (
        "the adapters must not be installed by their own name"
    )
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = TensorDataset(torch.randn(400, 4), torch.randn(400, 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "forecasts.jsonl")
        trainer = lightning.Trainer(
            max_steps=100,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[LossForecast("train_loss", sinks=[JsonlSink(path)], mlflow=False)],
        )
        trainer.fit(Line(), DataLoader(data, batch_size=4))
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    forecasts = [line for line in lines if "value" in line]
    assert forecasts, "no forecast was made"
    assert all(line["low"] < line["value"] < line["high"] for line in forecasts)
    print(f"scale-callbacks {version('scale-callbacks')} on Python {sys.version.split()[0]}: {forecasts[-1]}")
    print("1 passed, 0 failed")


if __name__ == "__main__":
    main()
