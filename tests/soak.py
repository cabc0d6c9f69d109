"""Kills trainings at random steps, resumes them, compares every forecast with those of a run left alone.

`python tests/soak.py --kills 20` runs Lightning and Transformers; exit code 1 where anything differs.
A training is a child process with a fixed stream of losses and rewards. It ends by SIGKILL: at the end of a
step, right after a forecast (before its checkpoint), while a checkpoint is written, or from outside at any
moment; the next child resumes from the latest checkpoint.
"""

import argparse
import importlib
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = 400
EVERY = 7  # steps between two checkpoints
AHEAD = 60  # a kill comes at most so many steps after the checkpoint resumed from
MODES = ("step", "forecast", "outside", "saving")
LIMIT = 300.0  # seconds for a child


def loss(step: int) -> float:
    """A falling loss with noise, spikes and a few values that are not finite."""
    noise = random.Random(step)
    if step % 97 == 0:
        return math.nan
    return 2.0 + 3.0 * (step + 5) ** -0.5 + noise.gauss(0.0, 0.03) + (1.0 if step % 61 == 0 else 0.0)


def reward(step: int) -> float:
    """A reward that saturates."""
    return 1.0 - 2.0 ** (-step / 40) + random.Random(-step).gauss(0.0, 0.08)


class Killer:
    """Ends this process without a word, at a step and in a moment that were chosen before."""

    def __init__(self, mode: str, step: int) -> None:
        self.mode, self.step = mode, step

    def here(self, moment: str, step: int) -> None:
        if moment == self.mode and step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Log:
    """Sink that writes each forecast and decision to a file before anything else can happen."""

    inline = True

    def __init__(self, path: Path, killer: Killer) -> None:
        self.path, self.killer = path, killer

    def write(self, record: Any, summary: Any) -> None:
        from scale_callbacks.saturation import Reason

        decision = record.decision
        clock = ("hours_saved", "step_time")  # what a clock has measured differs from run to run
        line = {
            "name": record.name,
            "step": record.step,
            "forecast": None if record.forecast is None else record.forecast.to_dict(),
            "stop": decision.stop,
            "reason": str(Reason.of(decision)) if decision.reason else "",
            "evidence": {k: v for k, v in decision.evidence.items() if k not in clock},
            "deviation": None if summary.deviation is None else summary.deviation.to_dict(),
        }
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.killer.here("forecast", record.step)

    def close(self, summary: Any) -> None:
        """Do nothing."""


def train_lightning(folder: Path, killer: Killer) -> None:
    """One child: a Lightning training from its latest checkpoint to the end."""
    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torch.utils.data import DataLoader, TensorDataset

    from scale_callbacks import LossForecast, SaturationRule, SaturationStopping
    from scale_callbacks.integrations import _trainer

    _trainer.FEWEST_READS = STEPS // 3  # windows of three steps: most checkpoints lie inside one

    class Played(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            step = self.global_step + 1
            self.log_dict({"train_loss": loss(step), "reward": reward(step)})
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    class Steps(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            folder.joinpath("progress").write_text(str(trainer.global_step))
            killer.here("step", trainer.global_step)

        def on_save_checkpoint(self, trainer: Any, *args: Any) -> None:
            killer.here("saving", trainer.global_step)

    log = Log(folder / "log.jsonl", killer)
    rule = SaturationRule(stop_on=())
    watching = [LossForecast(sinks=[log], mlflow=False), SaturationStopping(rule=rule, sinks=[log])]
    saver = ModelCheckpoint(folder, every_n_train_steps=EVERY, save_top_k=-1, filename="{step}")
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=STEPS, callbacks=[*watching, Steps(), saver], **quiet
    )
    data = DataLoader(TensorDataset(torch.ones(50, 1)))
    trainer.fit(Played(), data, ckpt_path=latest(folder, "step=*.ckpt"))
    ends = {c.monitor: ended(c._watch.monitor) for c in watching}
    folder.joinpath("end.json").write_text(json.dumps(ends))


def train_transformers(folder: Path, killer: Killer) -> None:
    """One child: a Transformers training from its latest checkpoint to the end."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from scale_callbacks import SaturationRule
    from scale_callbacks.integrations.transformers import LossForecastCallback, SaturationStoppingCallback

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(1, 1)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.net(x) - labels).square().mean()}

    class Played(Trainer):
        def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                logs |= {"loss": loss(self.state.global_step), "reward": reward(self.state.global_step)}
            super().log(logs, *args, **kwargs)

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder.joinpath("progress").write_text(str(state.global_step))
            killer.here("step", state.global_step)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            killer.here("saving", state.global_step)

    log = Log(folder / "log.jsonl", killer)
    watching = [
        LossForecastCallback(sinks=[log]),
        SaturationStoppingCallback(rule=SaturationRule(stop_on=()), sinks=[log]),
    ]
    settings = {"logging_steps": 1, "save_steps": EVERY, "max_steps": STEPS, "lr_scheduler_type": "cosine"}
    quiet = {"report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False, "use_cpu": True}
    data = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 50
    arguments = TrainingArguments(output_dir=str(folder), per_device_train_batch_size=1, **settings, **quiet)
    trainer = Played(Model(), arguments, train_dataset=data, callbacks=[Steps(), *watching])
    trainer.train(resume_from_checkpoint=latest(folder, "checkpoint-*/trainer_state.json"))
    ends = {c.monitor: ended(c._watch.monitor) for c in watching}
    folder.joinpath("end.json").write_text(json.dumps(ends))


KINDS: dict[str, Callable[[Path, Killer], None]] = {
    "lightning": train_lightning,
    "transformers": train_transformers,
}


def ended(monitor: Any) -> dict[str, Any]:
    """What a finished run holds: its curve and all of its forecasts."""
    state = monitor.state_dict()
    return {"curve": state["forecaster"]["curve"], "history": state["history"], "fired": state["fired"]}


def latest(folder: Path, pattern: str) -> str | None:
    """The checkpoint of the latest step; a Transformers checkpoint is a folder."""
    found = [path.parent if path.name.endswith(".json") else path for path in folder.glob(pattern)]
    return str(max(found, key=step_of)) if found else None


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int("".join(c for c in path.name.replace("-v", "") if c.isdigit()))


def child(train: Callable[[Path, Killer], None], folder: Path, mode: str = "", step: int = 0) -> int:
    """Train in a process of its own; kill it from outside where the mode says so; return how it ended."""
    folder.joinpath("progress").write_text("0")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with open(folder / "output.txt", "a") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            train(folder, Killer(mode, step))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    until = time.monotonic() + LIMIT
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        seen = int(folder.joinpath("progress").read_text() or 0)
        if (mode == "outside" and seen >= step) or time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            return os.waitpid(pid, 0)[1]
        time.sleep(0.002)
    return done[1]


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Every forecast that was made, as text to the last bit; a line cut off by a kill is left out."""
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def soak(kind: str, kills: int, seed: int, folder: Path) -> dict[str, int]:
    """Kill and resume one framework's training so often, and compare it with the run left alone.

    Returns:
        Counts: kills, forecasts compared, those made again after a resume, differences.
    """
    importlib.import_module(f"scale_callbacks.integrations.{kind}")  # once, not in each child
    train, chance = KINDS[kind], random.Random(f"{kind} {seed}")
    alone, killed = folder / "alone", folder / "killed"
    for path in (alone, killed):
        path.mkdir(parents=True)
    if child(train, alone) != 0:
        raise RuntimeError((alone / "output.txt").read_text()[-4000:])
    done, pattern = 0, "step=*.ckpt" if kind == "lightning" else "checkpoint-*/trainer_state.json"
    while done < kills:
        checkpoint = latest(killed, pattern)
        start = 0 if checkpoint is None else step_of(Path(checkpoint))
        step = chance.randint(start + 1, start + AHEAD)
        if step > STEPS - 2 * EVERY:  # too late in the run: start again
            break
        status = child(train, killed, MODES[done % len(MODES)], step)
        if not os.WIFSIGNALED(status):
            raise RuntimeError((killed / "output.txt").read_text()[-4000:])
        done += 1
    if child(train, killed) != 0:
        raise RuntimeError((killed / "output.txt").read_text()[-4000:])
    counts = compare(alone, killed) | {"kills": done}
    if done < kills:  # this run is over: go on with another
        more = soak(kind, kills - done, seed + 1000, folder / "next")
        counts = {name: counts[name] + more[name] for name in counts}
    return counts


def compare(alone: Path, killed: Path) -> dict[str, int]:
    """Count how many forecasts and ends of the killed run differ from those of the run left alone."""
    expected = {(line["name"], line["step"]): line for line in read_log(alone)}
    made = read_log(killed)
    wrong = [line for line in made if expected.get((line["name"], line["step"])) != line]
    missing = expected.keys() - {(line["name"], line["step"]) for line in made}
    ends = (json.loads((path / "end.json").read_text()) for path in (alone, killed))
    differ = next(ends) != next(ends)
    for line in wrong[:3]:
        print("differs:", line, "\nexpected:", expected.get((line["name"], line["step"])))
    again = len(made) - len({(line["name"], line["step"]) for line in made})
    return {
        "forecasts": len(made),
        "again": again,
        "differences": len(wrong) + len(missing) + differ,
    }


def main() -> int:
    """Soak what was asked for, say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each framework's training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(KINDS), help="one framework")
    options = parser.parse_args()
    failed = 0
    for kind in [options.only] if options.only else list(KINDS):
        with tempfile.TemporaryDirectory() as folder:
            counts = soak(kind, options.kills, options.seed, Path(folder))
        print(
            f"{kind}: {counts['kills']} kills, {counts['forecasts']} forecasts compared, "
            f"{counts['again']} of them made again after a resume, {counts['differences']} differences",
            flush=True,
        )
        failed += counts["differences"]
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
