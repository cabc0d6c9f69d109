"""Train a causal language model with Hugging Face's Trainer and watch, live, what loss it is heading for.

    python examples/finetune_transformers.py

A byte-level Llama of 0.36 million parameters, from its config, reads the email package of the running Python
three times: nothing to download, about two minutes on one core.
"""

import logging
import os
import sysconfig
import time
import warnings
from pathlib import Path
from typing import Annotated

os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # read when mlflow is imported

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from scale_callbacks import ConsoleSink, MemorySink
from scale_callbacks.integrations.transformers import LossForecastCallback
from scale_callbacks.report import save_forecast_png
from scale_callbacks.report_html import save_report

# Chosen for a run of about two minutes.
CONTEXT, BATCH, EPOCHS, PEAK_RATE = 128, 8, 3, 3e-3
PACKAGE = "email"  # of the standard library


class Windows(torch.utils.data.Dataset):
    """The package's sources, cut into windows of CONTEXT bytes."""

    def __init__(self) -> None:
        sources = sorted((Path(sysconfig.get_paths()["stdlib"]) / PACKAGE).rglob("*.py"))
        text = b"".join(path.read_bytes() for path in sources)
        windows = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().split(CONTEXT)
        self.windows = [window for window in windows if len(window) == CONTEXT]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.windows[i], "labels": self.windows[i]}


def small_llama() -> LlamaForCausalLM:
    """A causal language model from its config alone."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def table(forecasts: MemorySink, steps: int, final: float) -> Table:
    """Compare the forecasts made at 10%, 20%, ..., 90% of the run with the final loss."""
    made = [record.forecast for record in forecasts.records if record.forecast is not None]
    result = Table(title="Forecasts of the final loss")
    for heading in ("seen", "step", "forecast", "90% interval", "error", "held it"):
        result.add_column(heading, justify="right")
    for percent in range(10, 100, 10):
        seen = [forecast for forecast in made if forecast.step <= percent / 100 * steps]
        if not seen:
            result.add_row(f"{percent}%", "", "none yet", "", "", "")
            continue
        told = seen[-1]
        result.add_row(
            f"{percent}%",
            f"{told.step:,}",
            f"{told.value:.3f}",
            f"{told.low:.3f} to {told.high:.3f}",
            f"{100 * (told.value / final - 1):+.1f}%",
            "yes" if told.low <= final <= told.high else "no",
        )
    return result


def hush() -> None:
    """Keep other packages' advice off a newcomer's screen; what goes wrong in ours is still said."""
    for name in ("transformers", "accelerate", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def main(
    epochs: Annotated[int, typer.Option(min=1, help="Times the data is read.")] = EPOCHS,
    steps: Annotated[int, typer.Option(help="Optimizer steps, instead of epochs.")] = -1,
    seed: Annotated[int, typer.Option(help="Of the first weights and of the order of the data.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for what the run leaves.")] = Path("runs/finetune"),
) -> None:
    """Train a small Llama with the Trainer and forecast its final loss while it trains."""
    hush()
    console = Console(highlight=False, soft_wrap=True)
    say = console.print
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = store = f"sqlite:///{out}/mlflow.db"  # read by the Trainer's callback
    os.environ["MLFLOW_EXPERIMENT_NAME"] = "finetune"
    forecasts = MemorySink()
    trainer = Trainer(
        small_llama(),
        TrainingArguments(
            output_dir=str(out),
            num_train_epochs=epochs,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=PEAK_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=30,
            weight_decay=0.1,
            logging_steps=5,
            save_strategy="no",
            report_to="mlflow",
            disable_tqdm=True,
            seed=seed,
            use_cpu=True,
        ),
        train_dataset=Windows(),
        callbacks=[LossForecastCallback(sinks=[forecasts, ConsoleSink(console)])],
    )
    trainer.remove_callback(PrinterCallback)
    size = sum(weight.numel() for weight in trainer.model.parameters())
    say(
        f"A Llama of {size:,} parameters reads {len(trainer.train_dataset):,} windows of {CONTEXT} bytes"
        f" of the package {PACKAGE}."
    )
    begun = time.perf_counter()
    trainer.train()

    took = time.perf_counter() - begun

    steps = trainer.state.max_steps
    losses = [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]
    last = [loss for step, loss in losses if step > 0.99 * steps] or [losses[-1][1]]
    final = sum(last) / len(last)
    say(table(forecasts, steps, final))
    say(f"It became {final:.4f} (mean over the last 1% of the steps), in {took:.0f} s.")
    save_forecast_png(forecasts.summary, out / "forecast.png")
    save_report(forecasts.summary, out / "report.html")
    say(f"\nPicture       {out / 'forecast.png'}")
    say(f"Report        {out / 'report.html'}")
    say(f"MLflow run    mlflow ui --backend-store-uri {store}")


if __name__ == "__main__":
    typer.run(main)
