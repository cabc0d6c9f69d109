"""What the callback costs a GPU: the same training with and without it, in turns.

    python examples/measure_on_gpu.py           # a GPT of 100 million parameters, bf16, torch.compile
    python examples/measure_on_gpu.py --tiny    # a GPT of nothing, on any CPU, in seconds: shows that it runs

Runs come in pairs, one with `LossForecast` and one without, in changing order; what is compared is the time
of their steps after the first ones. The plan is ten times as long as the part that is run: forecasts are then
about three times as dense as over a whole run. How often the host waits for the GPU is counted apart, by
torch's profiler.
"""

import json
import logging
import platform
import statistics
import sys
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
import typer
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))
from pretrain_gpt import GPT

from scale_callbacks import LossForecast

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


class Net(L.LightningModule):
    """A GPT that is taught random bytes, made on the device: no data to wait for."""

    def __init__(self, model: torch.nn.Module, batch: int, context: int) -> None:
        super().__init__()
        self.model, self.batch, self.context = model, batch, context

    def training_step(self, batch: object, batch_idx: int) -> torch.Tensor:
        text = torch.randint(256, (self.batch, self.context + 1), device=self.device)
        logits = self.model(text[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), text[:, 1:].flatten())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-4, fused=self.device.type == "cuda")
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10 * self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Clock(L.Callback):
    """Seconds a step, from step `first` to the end; the device is waited for at both."""

    def __init__(self, first: int) -> None:
        self.first, self.begun, self.seconds = first, 0.0, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.global_step == self.first:
            self.begun = now()

    def on_train_end(self, trainer: L.Trainer, *args: object) -> None:
        self.seconds = (now() - self.begun) / (trainer.global_step - self.first)


def now() -> float:
    """The time when the GPU has done what it was given; on a CPU, which others use too, our share of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def train(net: Net, steps: int, *, watched: bool) -> tuple[float, LossForecast | None]:
    """Seconds a step of one training, and its callback."""
    clock = Clock(max(1, steps // 10))
    forecast = LossForecast(horizon=10 * steps, mlflow=False) if watched else None
    trainer = L.Trainer(
        max_steps=steps,
        devices=1,
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock, *([forecast] if forecast else [])],
    )
    trainer.fit(net, DataLoader(range(steps), batch_size=None))
    return clock.seconds, forecast


def waits(net: Net, steps: int, *, watched: bool) -> float | None:
    """How often the host waits for the GPU, per 1,000 steps."""
    if not torch.cuda.is_available():
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        train(net, steps, watched=watched)
    return 1000.0 * sum(event.count for event in seen.key_averages() if event.key in WAITS) / steps


def main(steps: int = 1000, pairs: int = 4, tiny: bool = False, out: Path | None = None) -> None:
    """Measure, print, and with `out` write the result to a JSON file."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    if not torch.cuda.is_available() and not tiny:
        sys.exit("no GPU here: --tiny shows on a CPU that this runs, and measures nothing worth knowing")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = GPT(32, 1, 2) if tiny else GPT(768, 14, 12)
    net = Net(model if tiny else torch.compile(model), *((4, 32) if tiny else (16, 1024)))
    train(net, max(10, steps // 20), watched=True)  # compiles, and warms up
    plain, watched, forecasts = [], [], 0
    for pair in range(pairs):
        for with_it in (False, True) if pair % 2 else (True, False):
            seconds, callback = train(net, steps, watched=with_it)
            (watched if with_it else plain).append(seconds)
            forecasts = len(callback._watch.monitor.history) if callback else forecasts
    counted = min(steps, 200)
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "CPU",
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps a run": steps,
        "forecasts a run": forecasts,
        "ms a step without": 1e3 * statistics.median(plain),
        "ms a step with": 1e3 * statistics.median(watched),
        "slowdown, %": 100 * (statistics.median([w / p for w, p in zip(watched, plain, strict=True)]) - 1),
        "slowdown of each pair, %": [100 * (w / p - 1) for w, p in zip(watched, plain, strict=True)],
        "waits for the GPU per 1,000 steps without": waits(net, counted, watched=False),
        "waits for the GPU per 1,000 steps with": waits(net, counted, watched=True),
    }
    print(json.dumps(found, indent=1))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
