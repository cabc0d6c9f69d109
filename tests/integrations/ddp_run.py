"""One of several ranks: trains with Lightning's DDP in several ways, writes down what its callbacks saw."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from scale_callbacks import MemorySink, due
from scale_callbacks.integrations import lightning
from tests.integrations import ddp_restart, ddp_saturation
from tests.integrations.lightning_runs import Net, Recording, Silent, Validated, data


class RankZeroOnly(Silent):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.trainer.is_global_zero:
            self.log("train_loss", loss, rank_zero_only=True)
        return loss


class AtDifferentTimes(Silent):
    """Even steps are logged by rank 0, odd ones by rank 1; the first three by none."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("step", float(self.global_step))
        if self.global_step >= 3 and self.global_step % 2 == self.global_rank:
            self.log("train_loss", loss)
        return loss


class ValidatedOnRankZero(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_global_zero:
            self.log("val_loss", self.loss(batch), rank_zero_only=True)


class OnEpoch(Net):
    log_as = {"name": "train_loss", "on_step": False, "on_epoch": True}  # noqa: RUF012


class OneRankFails(pl.Callback):
    """Breaks our callback on rank 1 in the middle of the run."""

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 20 and trainer.global_rank == 1:
            callback = next(c for c in trainer.callbacks if isinstance(c, lightning.LossForecast))

            def broken(outputs: Any) -> None:
                raise ZeroDivisionError("rank 1")

            callback._watch._tap.take = broken


class OneRankIsDeaf(pl.Callback):
    """Rank 1 can take no further observation from the middle of the run on."""

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 20 and trainer.global_rank == 1:
            callback = next(c for c in trainer.callbacks if isinstance(c, lightning.LossForecast))

            def broken(*args: Any, **options: Any) -> None:
                raise ZeroDivisionError("rank 1")

            callback._watch.monitor.forecaster.observe = broken


class StopsEarly(pl.Callback):
    """Ends the training between two forecasts."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step >= 40


CASES: dict[str, tuple[type[Net], str, tuple[pl.Callback, ...]]] = {
    "logged": (Net, "train_loss", ()),
    "silent": (Silent, "train_loss", ()),
    "rank zero only": (RankZeroOnly, "train_loss", ()),
    "epoch": (OnEpoch, "train_loss", ()),
    "validation": (Validated, "val_loss", ()),
    "different times": (AtDifferentTimes, "train_loss", ()),
    "validation on rank zero": (ValidatedOnRankZero, "val_loss", ()),
    "one rank fails": (Net, "train_loss", (OneRankFails(),)),
    "one rank is deaf": (Net, "train_loss", (OneRankIsDeaf(),)),
    "stopped early": (Net, "train_loss", (StopsEarly(),)),
    "unknown": (Net, "loss", ()),
}


def run(name: str, strategy: Any) -> dict[str, Any]:
    module, key, others = CASES[name]
    sink = MemorySink()
    callback, net = lightning.LossForecast(key, sinks=[sink]), module()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_epochs=6,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, *others],
    )
    error = ""
    try:
        # these alone have a validation
        val = (data(batches=4),) if key == "val_loss" else ()
        trainer.fit(net, data(batches=20), *val)
    except ValueError as fault:
        error = str(fault)
    watch = callback._watch
    assert watch is not None
    return {
        "told": watch.monitor.__dict__.get("told", []),
        "history": [list(point.__dict__.values()) for point in watch.monitor.history],
        "metrics": {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("forecast")},
        "losses": net.losses,
        "records": len(sink.records),
        "warnings": dict(callback.warnings),
        "steps": trainer.global_step,
        "error": error,
    }


def main(folder: Path, rank: int) -> dict[str, Any]:
    """Every case; those with few forecasts first."""
    results = {
        f"saturation {name}": ddp_saturation.run(name == "deaf" and rank == 1) for name in ("sound", "deaf")
    }
    ddp_restart.coarse()
    results |= ddp_restart.both(folder)
    lightning.Monitor = Recording
    due.LINEAR, due.RATIO = 1 / 4, 2.0  # fewer forecasts
    return results | {name: run(name, "ddp") for name in CASES}


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    out.joinpath(f"rank{rank}.json").write_text(json.dumps(main(out, rank)))
    torch.distributed.destroy_process_group()  # else gloo's threads may outlive the interpreter
