"""Tiny real trainings for the tests of the Lightning callback."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from scale_callbacks import LossForecast
from scale_callbacks.monitor import Monitor

NOISE = 0.1

QUIET = [
    # what Lightning says of tiny trainings
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*enable_checkpointing"),
    pytest.mark.filterwarnings("ignore:.*not have a `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:`training_step` returned `None`"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # torch says it to Lightning
]

RECORDED = [*QUIET, pytest.mark.usefixtures("recording")]  # the monitor keeps what it was told

torch.set_num_threads(1)


def data(batches: int = 20, batch_size: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batches * batch_size, 4, generator=generator)
    y = x.sum(dim=1, keepdim=True) + NOISE * torch.randn(len(x), 1, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


class Net(pl.LightningModule):
    """Logs `train_loss` on each step; keeps the losses it saw and the rates that were applied."""

    log_as: dict[str, Any] | None = {"name": "train_loss"}  # noqa: RUF012

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(4, 1)
        self.lr = lr
        self.losses: list[float] = []
        self.rates: list[float] = []

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return ((self.net(x) - y) ** 2).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        if self.log_as is not None:
            self.log(value=loss, **self.log_as)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Silent(Net):
    log_as = None


class Validated(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))


class Scored(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", ((self.net(x) > 0) == (y > 0)).float().mean())


class OnEpoch(Net):
    log_as = {"name": "train_loss", "on_step": False, "on_epoch": True}  # noqa: RUF012


class AtEpochEnd(Silent):
    def on_train_epoch_end(self) -> None:
        self.log("train_loss", torch.tensor(self.losses[-20:]).mean())


class Recording(Monitor):
    """A real monitor that also keeps what it was told."""

    told: list[tuple[int, float, int, dict[str, float] | None]]

    def observe(self, step: int, value: float, *, extra: Any = None, span: int = 1) -> Any:
        self.__dict__.setdefault("told", []).append((step, value, span, extra))
        return super().observe(step, value, extra=extra, span=span)


def told(callback: LossForecast) -> list[tuple[int, float, int, Any]]:
    assert callback._watch is not None
    monitor = callback._watch.monitor
    assert isinstance(monitor, Recording)
    return monitor.__dict__.get("told", [])


def history(callback: LossForecast) -> list[Any]:
    assert callback._watch is not None
    return callback._watch.monitor.history


class Stop(pl.Callback):
    """Ends the training after a step the way a fault does."""

    def __init__(self, step: int, error: BaseException | None = None) -> None:
        self.step, self.error = step, error or RuntimeError("fault")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise self.error


def trainer(*callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    if not settings.keys() & {"max_steps", "max_epochs"}:
        settings["max_steps"] = 60
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{**quiet, **settings},
    )
