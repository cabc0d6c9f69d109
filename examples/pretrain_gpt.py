"""Pretrain a small GPT on Python's own sources and watch, live, what final loss the run is heading for.

    python examples/pretrain_gpt.py

A byte-level transformer of 0.47 million parameters learns the standard library of the Python that runs it:
nothing to download, three minutes on one core. A tenth of the files is held out for validation.
"""

import hashlib
import logging
import math
import os
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # read when mlflow is imported

import lightning as L
import torch
import torch.nn.functional as F
import typer
from lightning.pytorch.loggers import MLFlowLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from scale_callbacks import ConsoleSink, LossForecast, MemorySink
from scale_callbacks.report import save_forecast_png
from scale_callbacks.report_html import save_report

# Chosen before any forecast was run, for the best validation loss within two to three minutes on a CPU.
CONTEXT = 128  # bytes
BATCH = 8  # windows a step
WIDTH, DEPTH, HEADS = 96, 4, 3
STEPS, WARMUP, COOLDOWN = 3000, 0.04, 0.2  # steps, and shares of them
PEAK_RATE, WEIGHT_DECAY, BETAS, CLIP = 3e-3, 0.1, (0.9, 0.99), 1.0


# --- the text -----------------------------------------------------------------------------------------------


def library_text() -> tuple[Tensor, Tensor]:
    """Read the standard library's sources without its tests: training bytes and held-out bytes, as uint8."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    train, held_out = [], []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if left_out.isdisjoint(name.parts):
            to_hold_out = hashlib.sha256(name.as_posix().encode()).digest()[0] % 10 == 0
            (held_out if to_hold_out else train).append(path.read_bytes())
    return tuple(torch.frombuffer(bytearray(b"".join(part)), dtype=torch.uint8) for part in (train, held_out))


def windows(text: Tensor, starts: Tensor) -> Tensor:
    """Cut windows of CONTEXT + 1 bytes out of a text, one a start: (windows, CONTEXT + 1)."""
    return text[starts.to(text.device)[:, None] + torch.arange(CONTEXT + 1, device=text.device)].long()


class RandomWindows:
    """Batches drawn from the text on the fly, in an order that depends on the seed alone."""

    def __init__(self, text: Tensor, *, batch: int, batches: int, seed: int) -> None:
        self.text, self.batch, self.batches, self.seed = text, batch, batches, seed

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.batches):
            yield windows(
                self.text, torch.randint(len(self.text) - CONTEXT, (self.batch,), generator=generator)
            )


# --- the model ----------------------------------------------------------------------------------------------


def rotate(x: Tensor) -> Tensor:
    """Rotary positions: turn pairs of features by an angle that grows with time. x: (B, T, heads, size)."""
    time, size = x.shape[1], x.shape[3]
    frequency = 10_000.0 ** -torch.arange(0, 1, 2 / size, device=x.device)
    angle = torch.outer(torch.arange(time, device=x.device), frequency)[:, None]
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2).type_as(x)


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each added to the stream it reads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        qk, v = (
            self.qkv(self.norm1(x)).unflatten(-1, (3 * self.heads, -1)).split((2 * self.heads, self.heads), 2)
        )
        q, k = rotate(qk).transpose(1, 2).chunk(2, 1)
        heard = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True)
        x = x + self.mix(heard.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A byte-level GPT: bytes (B, T) to logits of the next byte (B, T, 256)."""

    def __init__(self, width: int = WIDTH, depth: int = DEPTH, heads: int = HEADS) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, weight in self.named_parameters():
            if name == "embed.weight":
                nn.init.normal_(weight, std=0.02)
            elif weight.ndim == 2:
                # what a block adds starts smaller, so that the stream does not grow with the depth
                last = name.endswith(("mix.weight", "down.weight"))
                nn.init.normal_(weight, std=0.5 / math.sqrt(width) / (math.sqrt(2 * depth) if last else 1))

    def forward(self, text: Tensor) -> Tensor:
        stream = self.embed(text) * math.sqrt(self.embed.embedding_dim)
        return F.linear(
            self.norm(self.blocks(stream)), self.embed.weight
        )  # embedding and head share their weights


# --- the training -------------------------------------------------------------------------------------------


def wsd(step: int, steps: int) -> float:
    """Warm up, stay, cool down linearly: the share of the peak rate applied at a step counted from 0."""
    return max(0.0, min(1.0, (step + 1) / (WARMUP * steps), (steps - step) / (COOLDOWN * steps)))


class LitGPT(L.LightningModule):
    """The GPT, its loss, and its optimizer."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.gpt = GPT()

    def loss(self, batch: Tensor) -> Tensor:
        return F.cross_entropy(self.gpt(batch[:, :-1]).flatten(0, 1).float(), batch[:, 1:].flatten())

    def training_step(self, batch: Tensor) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor) -> None:
        self.log("val_loss", self.loss(batch), prog_bar=True, batch_size=len(batch))

    def configure_optimizers(self) -> dict:
        matrices = [weight for weight in self.parameters() if weight.ndim == 2]
        gains = [weight for weight in self.parameters() if weight.ndim < 2]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}],
            lr=PEAK_RATE,
            betas=BETAS,
            fused=self.device.type == "cpu",  # on a GPU Lightning's mixed precision does not clip for it
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: wsd(step, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Curves(L.Callback):
    """Keeps the losses of every step, to compare the forecasts with what came."""

    def __init__(self) -> None:
        self.train_loss: list[tuple[int, Tensor]] = []
        self.val_loss: list[tuple[int, Tensor]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs, batch, index: int
    ) -> None:
        self.train_loss.append((trainer.global_step, outputs["loss"].detach()))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.val_loss.append((trainer.global_step, trainer.callback_metrics["val_loss"].detach().clone()))

    def final(self, name: str, steps: int) -> float:
        """The smoothed final loss: the mean over the last 1% of the steps, at least the last observation."""
        curve = getattr(self, name)
        last = [loss for step, loss in curve if step > 0.99 * steps] or [curve[-1][1]]
        return torch.stack(last).double().mean().item()


# --- what came of it ----------------------------------------------------------------------------------------


def table(forecasts: MemorySink, name: str, steps: int, final: float) -> Table:
    """Compare the forecasts made at 10%, 20%, ..., 90% of the run with the final loss."""
    made = [record.forecast for record in forecasts.records if record.forecast is not None]
    result = Table(title=f"Forecasts of the final {name}")
    for heading in ("seen", "step", "forecast", "90% interval", "error", "held it"):
        result.add_column(heading, justify="right")
    for percent in range(10, 100, 10):
        forecast = max(
            (f for f in made if f.step <= percent / 100 * steps), key=lambda f: f.step, default=None
        )
        if forecast is None:
            result.add_row(f"{percent}%", "", "none yet", "", "", "")
            continue
        result.add_row(
            f"{percent}%",
            f"{forecast.step:,}",
            f"{forecast.value:.3f}",
            f"{forecast.low:.3f} to {forecast.high:.3f}",
            f"{100 * (forecast.value / final - 1):+.1f}%",
            "yes" if forecast.low <= final <= forecast.high else "no",
        )
    return result


def hush() -> None:
    """Keep other packages' advice off a newcomer's screen; what goes wrong in ours is still said."""
    for name in ("lightning.pytorch", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for advice in (".*LeafSpec.*", ".*does not have many workers.*"):
        warnings.filterwarnings("ignore", message=advice)


def trainer_for(
    steps: int, logger: MLFlowLogger, callbacks: list[L.Callback], *, live: bool, gpu: bool
) -> L.Trainer:
    """A trainer on one device; the progress bar only where somebody sees it."""
    return L.Trainer(
        max_epochs=1,  # of RandomWindows, which is as long as the run
        accelerator="gpu" if gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if gpu else "32-true",
        gradient_clip_val=CLIP,
        val_check_interval=max(1, steps // 40),
        num_sanity_val_steps=0,
        log_every_n_steps=max(1, steps // 200),
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=live,
    )


def main(
    steps: Annotated[int, typer.Option(min=50, help="Optimizer steps.")] = STEPS,
    seed: Annotated[int, typer.Option(help="Of the first weights and of the order of the data.")] = 0,
    threads: Annotated[
        int,
        typer.Option(
            min=1, help="CPU threads. Two take two thirds of the time, beside other programs ten times it."
        ),
    ] = 1,
    out: Annotated[Path, typer.Option(help="Folder for what the run leaves.")] = Path("runs/demo"),
    monitor: Annotated[
        Literal["train_loss", "val_loss"], typer.Option(help="Which loss to forecast.")
    ] = "train_loss",
) -> None:
    """Pretrain a small GPT and forecast its final loss while it trains."""
    hush()
    console = Console(highlight=False, soft_wrap=True)
    say = console.print
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    gpu = torch.cuda.is_available()
    batch = 8 * BATCH if gpu else BATCH
    train_text, held_out = (text.cuda() if gpu else text for text in library_text())
    spread = torch.linspace(0, len(held_out) - CONTEXT - 1, 64).long()
    model = LitGPT(steps)
    size = sum(weight.numel() for weight in model.parameters())
    say(
        f"A GPT of {size:,} parameters on {len(train_text) / 1e6:.1f} MB"
        f" of the standard library's sources: {steps:,} steps of {batch} x {CONTEXT} bytes."
    )

    out.mkdir(parents=True, exist_ok=True)
    store = f"sqlite:///{out}/mlflow.db"
    logger = MLFlowLogger(
        "pretrain-gpt", tracking_uri=store, artifact_location=(out / "artifacts").resolve().as_uri()
    )
    curves, forecasts = Curves(), MemorySink()
    live = sys.stdout.isatty()
    watching = LossForecast(monitor, sinks=[forecasts] if live else [forecasts, ConsoleSink(console)])
    trainer = trainer_for(steps, logger, [watching, curves], live=live, gpu=gpu)
    begun = time.perf_counter()
    trainer.fit(
        model,
        RandomWindows(train_text, batch=batch, batches=steps, seed=seed),
        DataLoader(windows(held_out, spread), batch_size=32),
    )
    took = time.perf_counter() - begun

    final = curves.final(monitor, steps)
    say(table(forecasts, monitor, steps, final))
    say(
        f"It became {final:.4f} (mean over the last 1% of the steps), in {took:.0f} s of training "
        f"on {steps * batch * CONTEXT / 1e6:.1f} MB; val_loss {curves.final('val_loss', steps):.4f}."
    )
    save_forecast_png(forecasts.summary, out / "forecast.png")
    save_report(forecasts.summary, out / "report.html")
    mlflow = here(Path(sys.executable).with_name("mlflow"))
    page = f"experiments/{logger.experiment_id}/runs/{logger.run_id}/model-metrics"
    say(f"\nPicture       {out / 'forecast.png'}")
    say(f"Report        {out / 'report.html'}")
    say(f"MLflow run    {mlflow} ui --backend-store-uri {store}")
    say(f"  its page    http://127.0.0.1:5000/#/{page}")


def here(path: Path) -> str:
    """A path as one would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    typer.run(main)
