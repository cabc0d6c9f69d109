"""What the ranks of a Lightning training tell one another, through the strategy's own reductions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch

Note = Callable[[str, Exception | None], None]


@dataclass(frozen=True)
class Mean:
    """Sum of the finite values, their count, the count of the others, and that of ranks that had failed."""

    total: float
    count: float
    bad: float
    failed: float = 0.0

    @property
    def mean(self) -> float:
        """The mean of the finite values."""
        return self.total / self.count


class Ranks:
    """Adds up and gathers numbers over ranks; to be asked only inside hooks that every rank reaches.

    Args:
        trainer: the trainer, whose strategy does it.
        note: told when the ranks cannot be reached.

    Attributes:
        device: where numbers are to be for that.
        lost: whether the others could not be reached.
    """

    def __init__(self, trainer: pl.Trainer, note: Note) -> None:
        self.device = trainer.strategy.root_device
        self.lost = False
        self._trainer = trainer
        self._note = note

    @property
    def world(self) -> int:
        """How many train together."""
        return int(self._trainer.world_size)

    def sum(self, numbers: torch.Tensor) -> list[float]:
        """Add up over ranks, and read: the host waits for the device here."""
        try:
            if self.world > 1:
                numbers = self._trainer.strategy.reduce(numbers, reduce_op="sum")
        except Exception as fault:
            self.lost = True
            self._note("the ranks cannot be reached, no more forecasts", fault)
        return [float(number) for number in numbers.tolist()]

    def highest(self, choice: int, choices: int) -> int:
        """The highest of the ranks' choices, each from 0 to `choices` - 1."""
        if self.world == 1:
            return choice
        votes = torch.zeros(choices, device=self.device)
        votes[choice] = 1.0
        return max((i for i, count in enumerate(self.sum(votes)) if count), default=choice)

    def gather(self, numbers: torch.Tensor) -> list[list[float]]:
        """The numbers of each rank."""
        if self.world == 1:
            return [numbers.tolist()]
        rows: Any = self._trainer.strategy.all_gather(numbers.to(self.device))
        return [[float(number) for number in row] for row in rows.reshape(self.world, -1).tolist()]

    def share_of(self, saved: Sequence[Sequence[float]]) -> list[float]:
        """What this rank goes on with of the sums that each rank has saved.

        Its own, where as many ranks train as before; else rank 0 goes on with all of them together.
        """
        if len(saved) == self.world:
            return list(saved[self._trainer.global_rank])
        return [sum(column) if self._trainer.is_global_zero else 0.0 for column in zip(*saved, strict=True)]
