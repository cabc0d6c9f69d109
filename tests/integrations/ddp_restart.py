"""One of several ranks that train with checkpoints between two reads, and resume from one of them."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from scale_callbacks import due
from scale_callbacks.integrations import _trainer, lightning
from tests.integrations.lightning_runs import Net, data

WORLD = int(os.environ.get("WORLD_SIZE", "1"))  # Lightning takes it away after a training


class Keyed(Net):
    """Logs losses that differ by rank and depend on the step alone; loses one now and then."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        step, rank = self.global_step, self.global_rank
        value = 2.0 + 3.0 / (step + 5) ** 0.5 + 0.1 * torch.sin(torch.tensor(7.0 * step + rank))
        self.log("key", float("nan") if (step + rank) % 11 == 0 else value)
        return loss


def fit(folder: Path, ckpt: Path | None = None, **settings: Any) -> dict[str, Any]:
    callback = lightning.LossForecast("key")
    saver = ModelCheckpoint(folder, every_n_train_steps=8, save_top_k=-1, filename="{step}")
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=6, callbacks=[callback, saver], **quiet, **settings)
    trainer.fit(Keyed(), data(batches=20), ckpt_path=ckpt)
    watch = callback._watch
    assert watch is not None
    return {
        "history": [list(point.__dict__.values()) for point in watch.monitor.history],
        "curve": watch.monitor.forecaster.curve.state_dict(),
        "steps": trainer.global_step,
        "horizon": watch.monitor.forecaster.horizon,
        "warnings": dict(callback.warnings),
    }


def coarse() -> None:
    """Fewer forecasts, and windows of three steps."""
    due.LINEAR, due.RATIO = 1 / 8, 1.5
    _trainer.FEWEST_READS = 20


def both(folder: Path, ckpt: Path | None = None) -> dict[str, Any]:
    """A whole run and one resumed from it, or one resumed from a given checkpoint, on all ranks there are."""
    settings: dict[str, Any] = {"devices": WORLD, "strategy": "ddp"}
    if ckpt is not None:
        return {"resumed": fit(folder, ckpt, **settings)}
    whole = fit(folder / "whole", **settings)
    between = folder / "whole" / ("step=32.ckpt" if WORLD == 2 else "step=8.ckpt")  # windows end at 30 and 33
    return {"whole": whole, "resumed": fit(folder / "resumed", between, **settings)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    coarse()
    folder, *ckpt = map(Path, sys.argv[1:])
    rank = os.environ["RANK"]
    results = both(folder, *ckpt)
    folder.joinpath(f"rank{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()  # else gloo's threads may outlive the interpreter
