"""Cost of the Lightning callback per training step, measured inside real (tiny) trainings."""

import logging
import statistics
import time
import warnings

import lightning.pytorch as pl
import torch
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from scale_callbacks import LossForecast
from scale_callbacks.integrations.torch import LossWindow, schedule_of

STEPS = 6000  # windows of 12 steps, which are read when a forecast is due


class Net(pl.LightningModule):
    """A linear layer; logs its loss or returns it only."""

    def __init__(self, logs):
        super().__init__()
        self.net = torch.nn.Linear(4, 1)
        self.logs = logs

    def training_step(self, batch, batch_idx):
        loss = (self.net(batch[0]) - 1.0).square().mean()
        if self.logs:
            self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Timed(LossForecast):
    """Times its own hook on each step, apart for steps on which something is due."""

    def on_fit_start(self, *args):
        super().on_fit_start(*args)
        self.idle, self.closed, self.forecasts = [], [], []

    def on_train_batch_end(self, *args):
        before = self._watch._next_read, len(self._watch.monitor.history)
        start = time.process_time()
        super().on_train_batch_end(*args)
        spent = 1e6 * (time.process_time() - start)
        if len(self._watch.monitor.history) > before[1]:
            self.forecasts.append(spent)
        elif self._watch._next_read != before[0]:
            self.closed.append(spent)
        else:
            self.idle.append(spent)


def train(logs, **settings):
    """Train for a while; the callback with its times."""
    callback = Timed()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=STEPS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        **settings,
    )
    data = DataLoader(TensorDataset(torch.randn(4000, 4)), batch_size=4)
    trainer.fit(Net(logs), data)
    return callback


def median_us(function, inner=200, repeats=50):
    """Median processor time of a call in microseconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(inner):
            function()
        times.append(1e6 * (time.process_time() - start) / inner)
    return statistics.median(times)


def look_ahead(make, horizon):
    """Milliseconds that reading a plan takes."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = make(optimizer)
    return median_us(lambda: schedule_of(optimizer, scheduler, horizon), inner=1, repeats=5) / 1e3


def measure():
    """Everything here, by name."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    found = {}
    for name, logs in (("logged loss", True), ("returned loss", False)):
        times = train(logs)
        found[f"hook with nothing due, {name}, us"] = statistics.median(times.idle)
        found[f"hook that closes a window, {name}, us"] = statistics.median(times.closed)
        found[f"hook that reads and forecasts, {name}, ms"] = statistics.median(times.forecasts) / 1e3
        found[f"all hooks of a run of {STEPS:,} steps, {name}, s"] = (
            sum(times.idle + times.closed + times.forecasts) / 1e6
        )
    window, loss = LossWindow(), torch.tensor(1.0)
    found["window: one add, us"] = median_us(lambda: window.add(loss))
    found["look-ahead, cosine of 10 million steps, ms"] = look_ahead(
        lambda o: lr_scheduler.CosineAnnealingLR(o, 10**7), 10**7
    )
    found["look-ahead, lambda of 10,000 steps, ms"] = look_ahead(
        lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)), 10**4
    )
    found["look-ahead, warm-up and cosine of 10 million steps, ms"] = look_ahead(
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.01, 1.0, 2000), lr_scheduler.CosineAnnealingLR(o, 10**7)], [2000]
        ),
        10**7,
    )
    return found
