"""A training loop of one's own, stopped when the accuracy has saturated: on one process or on several.

    python examples/plain_loop.py
    torchrun --nproc-per-node 2 examples/plain_loop.py

A perceptron guesses each byte of the standard library's sources from the eight before it.
"""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import typer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scale_callbacks import ConsoleSink, Monitor, RewardForecaster, SaturationRule
from scale_callbacks.integrations.torch import Agreement, schedule_of


def main(steps: int = 2000, batch: int = 256, past: int = 8) -> None:
    torch.set_num_threads(1)
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if several:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if several else 0
    torch.manual_seed(rank)
    text = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py")))
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    model = nn.Sequential(
        nn.Embedding(256, 16), nn.Flatten(), nn.Linear(16 * past, 128), nn.ReLU(), nn.Linear(128, 256)
    )
    model = DistributedDataParallel(model) if several else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    plan = schedule_of(optimizer, scheduler, horizon=steps)
    forecaster = RewardForecaster(steps, schedule=plan)  # of anything that is better the higher it is
    sinks = [ConsoleSink()] if rank == 0 else []
    monitor = Monitor(forecaster, rules=[SaturationRule()], sinks=sinks, name="accuracy")
    agreement = Agreement()  # on one process it costs nothing and says what it is told
    for step in range(1, steps + 1):
        window = data[torch.randint(len(data) - past, (batch, 1)) + torch.arange(past + 1)]
        scores, wanted = model(window[:, :past]), window[:, past]
        nn.functional.cross_entropy(scores, wanted).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        due = monitor.due(step)  # at steps that the plan alone decides: the same on every process
        accuracy = (scores.argmax(1) == wanted).float().mean()
        decision = monitor.observe(step, accuracy.item())
        if due and agreement.broadcast(decision.stop):  # what process 0 says
            print(f"process {rank} stops at step {step} of {steps}")
            break
    monitor.close()
    if several:
        dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
