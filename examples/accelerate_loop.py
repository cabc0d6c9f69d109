"""An Accelerate loop that is given up as soon as the forecast says that it will not get where it should.

    python examples/accelerate_loop.py
    torchrun --nproc-per-node 2 examples/accelerate_loop.py

A perceptron guesses each byte of the standard library's sources from the eight before it; it learns
too slowly.
"""

import os
from pathlib import Path

import torch
import typer
from accelerate import Accelerator
from torch import nn

from scale_callbacks import ConsoleSink, Decision, LossForecaster, Monitor
from scale_callbacks.integrations.torch import schedule_of


class WillMiss:
    """Stops when the whole interval of the forecast lies above the loss that is wanted."""

    def __init__(self, wanted: float) -> None:
        self.wanted = wanted

    def decide(self, forecaster: LossForecaster) -> Decision:
        told = forecaster.forecast()
        if told is None or told.step < 0.1 * told.horizon or told.low <= self.wanted:
            return Decision()
        return Decision(True, f"the loss will be {told.low:.2f} at best, and {self.wanted:g} is wanted")


def main(steps: int = 1000, wanted: float = 2.0, batch: int = 256, past: int = 8) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(accelerator.process_index)
    text = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py")))
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    model = nn.Sequential(
        nn.Embedding(256, 16), nn.Flatten(), nn.Linear(16 * past, 128), nn.ReLU(), nn.Linear(128, 256)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    forecaster = LossForecaster(schedule_of(optimizer, scheduler, horizon=steps))
    sinks = [ConsoleSink()] if accelerator.is_main_process else []
    monitor = Monitor(forecaster, rules=[WillMiss(wanted)], sinks=sinks)
    model, optimizer = accelerator.prepare(model, optimizer)
    for step in range(1, steps + 1):
        window = data[torch.randint(len(data) - past, (batch, 1)) + torch.arange(past + 1)]
        loss = nn.functional.cross_entropy(model(window[:, :past]), window[:, past])
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        due = monitor.due(step)  # at steps that the plan alone decides: the same on every process
        if monitor.observe(step, loss.item()).stop:
            accelerator.set_trigger()
        if due and accelerator.check_trigger():  # on one process or more
            print(f"process {accelerator.process_index} stops at step {step} of {steps}")
            break
    monitor.close()
    # A model still at hand keeps gloo's threads beyond Python's end, where torch 2.13 may then abort.
    model, optimizer = accelerator.free_memory(model, optimizer)
    accelerator.end_training()


if __name__ == "__main__":
    typer.run(main)
