"""Train an image classifier with Lightning for many epochs and watch, live, what loss it is heading for.

    python examples/classify_digits.py

A small convolutional network learns the 1,797 handwritten digits of scikit-learn, shifted and noisy, under
SGD and a cosine: nothing to download, some fifteen seconds on one core. Data that are read many times behave
otherwise than text that is read once: much of the loss goes late, with the rate.
"""

import os
import time
from pathlib import Path
from typing import Annotated

os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # read when mlflow is imported

import lightning as L
import pretrain_gpt as demo
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from scale_callbacks import ConsoleSink, LossForecast, MemorySink
from scale_callbacks.report import save_forecast_png

# Chosen for a run of some fifteen seconds.
EPOCHS, BATCH, PEAK_RATE, SMOOTHING = 60, 64, 0.1, 0.1


class Digits(L.LightningModule):
    """A convolutional network of two stages, with augmentation and label smoothing."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs
        layers: list[nn.Module] = []
        for into, out, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
            layers += [nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        pictures, labels = batch
        across, down = torch.randint(-1, 2, (2,)).tolist()
        shifted = pictures.roll((down, across), (2, 3)) + 0.3 * torch.randn_like(pictures)
        loss = F.cross_entropy(self.net(shifted), labels, label_smoothing=SMOOTHING)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = torch.optim.SGD(self.parameters(), PEAK_RATE, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)]


def main(
    epochs: Annotated[int, typer.Option(min=2, help="Times the digits are read.")] = EPOCHS,
    seed: Annotated[int, typer.Option(help="Of the first weights and of the order of the data.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for what the run leaves.")] = Path("runs/digits"),
) -> None:
    """Train a small classifier and forecast its final training loss while it trains."""
    demo.hush()
    console = Console(highlight=False, soft_wrap=True)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    pictures = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    loader = DataLoader(TensorDataset(pictures, torch.tensor(digits.target)), BATCH, shuffle=True)
    steps = epochs * len(loader)
    console.print(f"{len(pictures):,} digits, read {epochs} times: {steps:,} steps.")

    curves, forecasts = demo.Curves(), MemorySink()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[LossForecast(sinks=[forecasts, ConsoleSink(console)]), curves],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    begun = time.perf_counter()
    trainer.fit(Digits(epochs), loader)
    took = time.perf_counter() - begun

    final = curves.final("train_loss", steps)
    console.print(demo.table(forecasts, "train_loss", steps, final))
    console.print(f"It became {final:.4f} (mean over the last 1% of the steps), in {took:.0f} s of training.")
    save_forecast_png(forecasts.summary, out / "forecast.png")
    console.print(f"Picture       {out / 'forecast.png'}")


if __name__ == "__main__":
    typer.run(main)
