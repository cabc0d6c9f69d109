"""A training that stops when its reward saturates; on one rank the rule may be deaf."""

from typing import Any

import lightning.pytorch as pl
import torch

from scale_callbacks import SaturationStopping
from scale_callbacks.stopping import Decision
from tests.integrations.lightning_runs import Net, data


class Rewarded(Net):
    log_as = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        step = self.trainer.global_step + 1
        noise = torch.randn((), generator=torch.Generator().manual_seed(step)).item()
        self.log("reward", 1 - 2.0 ** (-step / 10) + 0.05 * noise)
        return super().training_step(batch, batch_idx)


def run(fault: bool) -> dict[str, Any]:
    callback = SaturationStopping()
    if fault:
        callback.rule.decide = lambda forecaster: Decision()  # type: ignore[method-assign]
    settings: dict[str, Any] = {"devices": 2, "strategy": "ddp", "log_every_n_steps": 1} | dict.fromkeys(
        ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    loop = pl.Trainer(accelerator="cpu", max_steps=200, logger=False, callbacks=[callback], **settings)
    loop.fit(Rewarded(), data())
    return {
        "steps": loop.global_step,
        "reason": callback.stopping_reason,
        "stopped": callback.stopped_step,
        "evidence": {k: v for k, v in callback.evidence.items() if k != "hours_saved"},
    }
