"""What watching costs a run: slowdown of 30 ms steps in pairs, waits for a device, import, faults."""

import contextlib
import gc
import itertools
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scale_callbacks import JsonlSink, LossForecaster, Monitor, Schedule, testing
from scale_callbacks.integrations import _window
from scale_callbacks.integrations.torch import LossWindow

ROOT = Path(__file__).parents[2]
STEP = 0.030  # seconds of processor time a training step takes
STEPS, CHUNK = 2000, 20  # steps of each of the two runs, and after how many the other has its turn
WARM_UP, RETUNED = 6, 5  # turns before the runs begin, and after how many the batch is sized anew
WINDOW = 4  # steps whose mean is observed, as the adapters choose for a run of this length
IMPORTS = 15


def measure():
    """Everything here, by name."""
    torch.set_num_threads(1)
    return imports() | waits() | held_up() | paired() | paired(epochs=50)


class Training:
    """A small perceptron on one core, and perhaps somebody who watches."""

    def __init__(self, *, folder=None, epochs=1):
        self.model = torch.nn.Sequential(
            torch.nn.Linear(256, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 256)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.x = None  # a batch, as large as a step is to last
        self.window = self.monitor = None
        self.unread = []
        self.step, self.inside, self.idle = 0, 0.0, []
        if folder is not None:
            plan = Schedule.cosine(1e-3, STEPS, warmup=50)
            sinks = [JsonlSink(Path(folder) / "forecasts.jsonl")]
            forecaster = LossForecaster(plan, steps_per_epoch=STEPS / epochs)
            self.monitor, self.window = Monitor(forecaster, sinks=sinks), LossWindow()

    def run(self, steps, *, watch):
        """Train; the processor time that took."""
        begun = time.process_time()
        for _ in range(steps):
            loss = (self.model(self.x) - self.x).square().mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if watch:
                self.step += 1
                began = time.process_time()
                if self.monitor is not None:
                    self.watch(loss)
                spent = time.process_time() - began
                self.inside += spent
                if self.step % WINDOW:
                    self.idle.append(spent)
        return time.process_time() - begun

    def watch(self, loss):
        """What an adapter does on a step."""
        self.window.add(loss)
        if self.step % WINDOW == 0:
            self.window.close()
            self.unread.append(self.step)
            if self.monitor.due(self.step):
                for step, (total, count, _) in zip(self.unread, self.window.closed().tolist(), strict=True):
                    self.monitor.observe(step, total / count, span=WINDOW)
                self.unread.clear()


def paired(epochs=1):
    """Two runs side by side, with and without, in turns of a few steps: the ratio of their whole times."""
    rows = 1024
    with tempfile.TemporaryDirectory() as folder:
        plain, watched = pair = Training(), Training(folder=folder, epochs=epochs)
        times = []
        for turn in range(-WARM_UP, STEPS // CHUNK):
            if turn <= 0 or turn % RETUNED == 0:  # the machine's speed changes within minutes
                last = [sum(spent) for spent in times[-RETUNED:]]
                rows = round(rows * STEP * 2 * CHUNK / statistics.median(last)) if last else rows
                for training in pair:
                    training.x = torch.randn(rows, 256)
            order = pair if turn % 2 else pair[::-1]
            spent = {training: training.run(CHUNK, watch=turn >= 0) for training in order}
            times.append((spent[plain], spent[watched]))
        watched.monitor.close()
    pairs = np.array(times[WARM_UP:])
    alone, both = pairs.sum(axis=0)
    rng = np.random.default_rng(0)
    drawn = pairs[rng.integers(len(pairs), size=(1000, len(pairs)))].sum(axis=1)
    inside = watched.inside - plain.inside  # less what the clock takes
    idle = statistics.median(watched.idle) - statistics.median(plain.idle)
    more = (10_000 - STEPS) * idle  # a longer run has as many windows and forecasts
    if epochs > 1:
        return {
            f"time inside the watching, of {STEPS:,} such steps in {epochs} epochs, %": 100 * inside / alone
        }
    return {
        "step of the paired run, ms": 1e3 * alone / STEPS,
        f"slowdown of {STEPS:,} steps, paired, %": 100 * (both / alone - 1),
        "its standard error, %": 100 * float((drawn[:, 1] / drawn[:, 0]).std()),
        f"time inside the watching, of {STEPS:,} steps, s": inside,
        f"the same, of {STEPS:,} such steps, %": 100 * inside / alone,
        "the same for 10,000 such steps, %": 100 * (inside + more) / alone * STEPS / 10_000,
        "of a step on which no window ends, us": 1e6 * idle,
    }


class Reads(TorchDispatchMode):
    """Counts what would make the host wait for a device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        moved = name == "_to_copy" and "device" in (kwargs or {})
        self.count += moved or name in {"_local_scalar_dense", "is_nonzero", "nonzero", "equal"}
        return function(*args, **(kwargs or {}))


def waits():
    """Reads of the device in 1,000 Lightning steps, with the callback and without, of a run of 100,000."""
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader, TensorDataset

    from scale_callbacks import LossForecast

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            loss = self.net(batch[0]).square().mean()
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    counts = []
    original, at_hand = torch.Tensor.tolist, _window.AT_HAND
    _window.AT_HAND = frozenset()  # the CPU stands for a device that is waited for
    for callbacks in ([], [LossForecast(horizon=100_000, mlflow=False)]):
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=1000, callbacks=callbacks, enable_model_summary=False, **quiet
        )
        data = DataLoader(TensorDataset(torch.randn(4000, 4)), batch_size=4)
        with Reads() as reads:

            def tolist(self, reads=reads):
                reads.count += 1
                return original(self)

            torch.Tensor.tolist = tolist  # never reaches the dispatcher
            try:
                trainer.fit(Net(), data)
            finally:
                torch.Tensor.tolist = original
        counts.append(reads.count)
    _window.AT_HAND = at_hand
    return {
        "waits for the device in 1,000 Lightning steps, without": counts[0],
        "waits for the device in 1,000 Lightning steps, with": counts[1],
    }


def held_up():
    """The longest that an observation took under each fault, and under none, on the clock; the best of five.

    On a machine that others use too, the longest of a few hundred steps is theirs more often than ours.
    """
    logging.getLogger("scale_callbacks").setLevel(logging.CRITICAL)
    return {
        f"longest step, {name}, ms": 1e3 * min(longest_step(fault) for _ in range(5))
        for name, fault in testing.FAULTS.items()
    }


def longest_step(fault):
    """The longest that an observation of a short run took."""
    plan = Schedule.cosine(1e-3, 60, warmup=6)
    sinks, longest = list(fault.sinks()), 0.0
    monitor = Monitor(LossForecaster(plan), sinks=sinks)
    gc.collect()
    with fault.inject():
        for step, loss in enumerate(testing.losses_of(plan).tolist(), start=1):
            begun = time.perf_counter()
            monitor.observe(step, loss)
            longest = max(longest, time.perf_counter() - begun)
    for sink in sinks:
        with contextlib.suppress(AttributeError):
            sink.release.set()
    monitor.close()
    return longest


def imports():
    """Processor time of fresh interpreters that import things, in turns; compiled, as installed code is."""
    wanted = {
        "numpy": "import numpy",
        "the package": "import scale_callbacks",
        "Monitor, RewardForecaster and rules": (
            "from scale_callbacks import Monitor, RewardForecaster, SaturationRule, DivergenceRule"
        ),
    }
    with tempfile.TemporaryDirectory() as cache:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env |= {"PYTHONPYCACHEPREFIX": cache, "PYTHONPATH": str(ROOT)}
        times = {name: [] for name in [*wanted, "nothing"]}
        for turn, (name, code) in itertools.product(range(IMPORTS + 1), [*wanted.items(), ("nothing", "")]):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", code], env=env, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if turn:  # the first compiles
                spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
                times[name].append(1e3 * spent)
    bare = statistics.median(times.pop("nothing"))
    median = {name: statistics.median(values) - bare for name, values in times.items()}
    found = {f"import of {name}, ms": value for name, value in median.items()}
    return found | {"bar for the package: 1.2 times numpy and 50 ms, ms": 1.2 * median["numpy"] + 50.0}
