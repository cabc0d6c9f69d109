"""One of several ranks of a plain torch loop that watch one loss together: DDP, Join, FSDP2."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.algorithms.join import Join
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from scale_callbacks import LossForecaster, Monitor, RewardForecaster, SaturationRule
from scale_callbacks.integrations.torch import Agreement, schedule_of
from tests.integrations import agreement_run

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
STEPS = 80


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))


def batches(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(100 + RANK)
    for _ in range(count):
        x = torch.randn(8, 4, generator=generator)
        yield x, x.sum(1, keepdim=True) + 0.1 * torch.randn(8, 1, generator=generator)


class Loop:
    """A training as users write it: the mean loss is asked for only when a forecast is due."""

    def __init__(self, net: torch.nn.Module, monitor: Any = None, timeout: float = 60.0) -> None:
        self.net = net
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        self.monitor = monitor or Monitor(LossForecaster(schedule_of(self.optimizer, None, STEPS)))
        self.agreement = Agreement(timeout=timeout)
        self.losses: list[float] = []
        self.told: list[float] = []
        self.step = 0

    def train(self, count: int, value: Any = None) -> dict[str, Any]:
        since: list[float] = []
        for x, y in batches(count):
            loss = (self.net(x) - y).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            self.losses.append(loss.item())
            since.append(self.losses[-1] if value is None else value(self.step))
            if self.step % 2 == 0:  # a step that all ranks share
                self.told.append(self.agreement.mean(sum(since) / len(since)))
                decision = self.monitor.observe(self.step, self.told[-1], span=2)
                since = []
                if self.agreement.broadcast(decision.stop):
                    break
        return self.result()

    def result(self) -> dict[str, Any]:
        forecast = self.monitor.forecast
        return {
            "steps": self.step,
            "losses": self.losses,
            "told": self.told,
            "forecast": None if forecast is None else forecast.value,
            "decision": self.monitor.decision.reason,
            "off": self.agreement.off,
            "faults": self.agreement.faults,
        }


def ddp() -> dict[str, Any]:
    return Loop(DistributedDataParallel(model())).train(STEPS)


def uneven() -> dict[str, Any]:
    """The last rank has half the data; `Join` lets the others train on."""
    net = DistributedDataParallel(model())
    loop = Loop(net)
    began = time.monotonic()
    with Join([net]):
        result = loop.train(STEPS // 2 if RANK == WORLD - 1 else STEPS)
        loop.agreement.close()
    return {**result, "seconds": time.monotonic() - began}


def sharded() -> dict[str, Any]:
    """FSDP2: every layer's parameters are spread over the ranks."""
    net = model()
    for layer in (net[0], net[2]):
        fully_shard(layer)
    fully_shard(net)
    result = Loop(net).train(STEPS)
    shard = next(net.parameters())
    return {**result, "shard": list(shard.to_local().shape), "whole": list(shard.shape)}


def stops() -> dict[str, Any]:
    """Rank 0's rule decides on a reward that saturates; the others see only noise."""
    monitor = Monitor(RewardForecaster(400), rules=[SaturationRule()], name="reward")
    loop = Loop(DistributedDataParallel(model()), monitor)

    def reward(step: int) -> float:
        noise = torch.randn((), generator=torch.Generator().manual_seed(step)).item()
        return WORLD * (1 - 2.0 ** (-step / 10) + 0.05 * noise) if RANK == 0 else 0.0

    if RANK:
        monitor.observe = lambda *args, **kwargs: monitor.decision  # type: ignore[method-assign]
    return loop.train(400, reward)


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1]) / f"rank{RANK}.json"
    dist.init_process_group("gloo")
    results = agreement_run.run([*agreement_run.CASES, ddp, sharded, stops, uneven])
    out.write_text(json.dumps(results))
    dist.barrier()
    results |= agreement_run.run([agreement_run.dies])
    out.write_text(json.dumps(results))
    os._exit(0)  # the default group has lost a member: nothing could be taken down in order
