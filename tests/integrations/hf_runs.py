"""Tiny real trainings for the tests of the Transformers callbacks."""

import os
import random
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

torch.set_num_threads(1)

QUIET = [
    pytest.mark.usefixtures("quick_collections"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
    pytest.mark.filterwarnings("ignore:mtime may not be reliable"),
    pytest.mark.filterwarnings("ignore:.*Was asked to gather along dimension 0"),
]


class Points(Dataset[dict[str, torch.Tensor]]):
    """A line with noise on it."""

    def __init__(self, count: int = 80) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, 4, generator=generator)
        self.y = self.x.sum(dim=1, keepdim=True) + 0.3 * torch.randn(count, 1, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[index], "labels": self.y[index]}


class Stream(IterableDataset[dict[str, torch.Tensor]]):
    """The same without a length."""

    def __iter__(self) -> Any:
        points = Points()
        while True:
            yield points[random.randrange(len(points))]


class Line(torch.nn.Module):
    """A line fitted by gradient descent; some losses can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.layer(x) - labels) ** 2).mean()}


class InOrder(Trainer):
    """Older versions of Transformers shuffle anew when they resume within an epoch."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Rewarded(Trainer):
    """Logs a reward as TRL does, one that saturates within a tenth of 300 steps."""

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= self.metrics(self.state.global_step)
        elif "eval_loss" in logs:
            logs |= {f"eval_{name}": value for name, value in self.metrics(self.state.global_step).items()}
        super().log(logs, *args, **kwargs)

    def metrics(self, step: int) -> dict[str, Any]:
        noise = torch.randn((), generator=torch.Generator().manual_seed(step)).item()
        return {"reward": 1 - 2.0 ** (-step / 10) + 0.07 * noise, "frac_reward_zero_std": 0.25}


def trainer(
    folder: Any,
    *callbacks: TrainerCallback,
    kind: type[Trainer] = Trainer,
    data: Any = None,
    optimizers: Any = (None, None),
    **settings: Any,
) -> Trainer:
    usual: dict[str, Any] = {
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 0.05,
        "per_device_train_batch_size": 4,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }
    if not settings.keys() & {"max_steps", "num_train_epochs"}:
        settings["max_steps"] = 60
    return kind(
        model=Line(),
        args=TrainingArguments(output_dir=str(folder), **{**usual, **settings}),
        train_dataset=Points() if data is None else data,
        eval_dataset=Points(8),
        callbacks=list(callbacks),
        optimizers=optimizers,
    )
