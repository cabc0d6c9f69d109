"""Writes the states of this folder; run with the code of the version whose states they are to be.

`git archive f4e8394 | tar x -C <folder>`, then there `PYTHONPATH=. python <this file> <this folder>`.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from scale_callbacks import LossForecast, SaturationRule, SaturationStopping, Schedule
from scale_callbacks.forecaster import LossForecaster
from scale_callbacks.monitor import Monitor
from scale_callbacks.reward import RewardForecaster

HORIZON, KEPT = 240, 100  # steps of the plan, and those that are in the states


def loss_stream() -> list[float]:
    noise = random.Random(1)
    return [2.0 + 3.0 * (t + 5) ** -0.5 + noise.gauss(0.0, 0.02) for t in range(1, HORIZON + 1)]


def reward_stream() -> list[float]:
    noise = random.Random(2)
    return [1.0 - 2.0 ** (-t / 12) + noise.gauss(0.0, 0.05) for t in range(1, HORIZON + 1)]


def plan() -> Schedule:
    return Schedule.cosine(1e-3, HORIZON, warmup=10)


def monitors() -> dict[str, Monitor]:
    reward = RewardForecaster(HORIZON, ceiling=1.5)
    return {
        "loss": Monitor(LossForecaster(plan()), name="train_loss"),
        "reward": Monitor(reward, rules=[SaturationRule()], name="reward"),
    }


def watched(name: str, stream: list[float]) -> dict[str, Any]:
    monitor = monitors()[name]
    for step, value in enumerate(stream[:KEPT], 1):
        extra = {"frac_reward_zero_std": 0.25} if name == "reward" else {"train_loss": value + 0.1}
        monitor.observe(step, value, extra=extra)
    return monitor.state_dict()


class Played(pl.LightningModule):
    """Logs a given stream, whatever it computes."""

    def __init__(self, key: str, stream: list[float]) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        self.key, self.stream = key, stream

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log(self.key, self.stream[self.global_step])
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def callback_state(callback: Any, key: str, stream: list[float]) -> dict[str, Any]:
    loop = pl.Trainer(
        accelerator="cpu",
        max_steps=KEPT,
        callbacks=[callback],
        **dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        ),
    )
    loop.fit(Played(key, stream), DataLoader(TensorDataset(torch.ones(HORIZON, 1))))
    return {"key": callback.state_key, "state": callback.state_dict()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    states = {
        "loss_monitor": (loss_stream(), watched("loss", loss_stream())),
        "reward_monitor": (reward_stream(), watched("reward", reward_stream())),
        "loss_forecast": (
            loss_stream(),
            callback_state(LossForecast(horizon=HORIZON), "train_loss", loss_stream()),
        ),
        "saturation_stopping": (
            reward_stream(),
            callback_state(
                SaturationStopping(horizon=HORIZON, rule=SaturationRule(stop_on=())),
                "reward",
                reward_stream(),
            ),
        ),
    }
    for name, (stream, state) in states.items():
        text = json.dumps({"version": 1, "kept": KEPT, "stream": stream, "state": state})
        folder.joinpath(f"{name}_v1.json").write_text(text + "\n")
