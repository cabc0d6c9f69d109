"""Search a learning rate with Optuna, giving up each trial when its forecast says it will not be the best.

    pip install 'scale-callbacks[sweeps]'
    python examples/tune_with_optuna.py                    # about a minute on one core
    python examples/tune_with_optuna.py --pruner none      # the same search with every trial run to its end
    python examples/tune_with_optuna.py --pruner median    # Optuna's own pruner

A small recurrent network learns Python's own sources byte by byte. What is searched are its rate, its width
and its warm-up, all of which change the shape of the curve: trials are compared by where they will end.
"""

import math
import time
from collections.abc import Callable
from typing import Annotated

import optuna
import pretrain_gpt as demo
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor, nn

from scale_callbacks import Schedule
from scale_callbacks.integrations.optuna import ForecastPruner

# Chosen for a search of about a minute.
TRIALS, STEPS, BATCH, CONTEXT = 20, 600, 16, 64
LAST = 0.05  # share of the steps whose mean loss is the value of a trial


PRUNERS: dict[str, Callable[[int], optuna.pruners.BasePruner]] = {
    "forecast": lambda steps: ForecastPruner(lambda trial: plan_of(trial, steps)),
    "median": lambda steps: optuna.pruners.MedianPruner(n_warmup_steps=steps // 10),
    "none": lambda steps: optuna.pruners.NopPruner(),
}


class Reader(nn.Module):
    """Predicts the next byte from those before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.layer = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 256)

    def forward(self, text: Tensor) -> Tensor:
        """Mean loss of each byte but the first."""
        hidden, _ = self.layer(self.embed(text[:, :-1]))
        return F.cross_entropy(self.head(hidden).flatten(0, 1), text[:, 1:].flatten())


def plan_of(trial: optuna.trial.FrozenTrial, steps: int) -> Schedule:
    """A trial's learning rate at every step, from what was suggested for it."""
    return Schedule.cosine(trial.params["rate"], steps, warmup=trial.params["warmup"])


def objective(trial: optuna.Trial, text: Tensor, steps: int, ran: list[int]) -> float:
    """Train a network with what is suggested, and return its mean loss at the end."""
    torch.manual_seed(0)
    trial.suggest_float("rate", 1e-4, 2e-2, log=True)
    trial.suggest_categorical("warmup", [1, 30, 100])
    net = Reader(trial.suggest_categorical("width", [32, 64, 96]))
    rates = plan_of(trial, steps).lr(range(1, steps + 1))
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    losses: list[float] = []
    for step, rate in enumerate(rates.tolist(), start=1):
        optimizer.param_groups[0]["lr"] = rate
        starts = torch.randint(len(text) - CONTEXT - 1, (BATCH, 1))
        loss = net(text[starts + torch.arange(CONTEXT + 1)])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        ran[0] += 1
        trial.report(losses[-1], step)
        if trial.should_prune():
            raise optuna.TrialPruned
    late = losses[-math.ceil(LAST * steps) :]
    return sum(late) / len(late)


def main(
    trials: Annotated[int, typer.Option(min=1, help="Trials to run.")] = TRIALS,
    steps: Annotated[int, typer.Option(min=120, help="Steps of each.")] = STEPS,
    pruner: Annotated[str, typer.Option(help=f"One of {', '.join(PRUNERS)}.")] = "forecast",
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
) -> None:
    """Search, and say what was saved."""
    demo.hush()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    console = Console(highlight=False, soft_wrap=True)
    text = demo.library_text()[0].long()
    if pruner not in PRUNERS:
        raise typer.BadParameter(f"{pruner!r} is none of {', '.join(PRUNERS)}", param_hint="--pruner")
    sampler = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(sampler=sampler, pruner=PRUNERS[pruner](steps))
    ran = [0]

    def told(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Say how a trial ended."""
        end = "ended" if trial.state is optuna.trial.TrialState.COMPLETE else "pruned"
        value = f" with a loss of {trial.value:.3f}" if end == "ended" else ""
        p = trial.params
        set_up = f"rate {p['rate']:.1e}, warm-up {p['warmup']:>3}, width {p['width']}"
        console.print(f"{trial.number:>3}  {set_up}  {end} at step {trial.last_step:,}{value}")

    begun = time.perf_counter()
    study.optimize(lambda trial: objective(trial, text, steps, ran), n_trials=trials, callbacks=[told])
    took = time.perf_counter() - begun
    share = ran[0] / (trials * steps)
    console.print(f"Best: trial {study.best_trial.number} with a loss of {study.best_value:.3f}.")
    console.print(
        f"{ran[0]:,} steps were run, {share:.0%} of those of {trials} whole trials, in {took:.0f} s."
    )


if __name__ == "__main__":
    typer.run(main)
