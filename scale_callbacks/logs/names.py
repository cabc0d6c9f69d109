"""Which of the logged names is the loss, the reward, the step, the learning rate."""

from __future__ import annotations

from collections.abc import Sequence

from scale_callbacks.report_text import printable

LOSSES = (
    "train_loss_step", "train/loss_step", "train_loss", "train/loss", "training_loss", "loss/train", "loss",
    "training/loss", "train_loss_epoch", "train/loss_epoch", "eval_loss", "eval/loss", "val_loss", "val/loss",
    "validation_loss", "validation/loss",
)  # fmt: skip
REWARDS = (
    "reward", "train/reward", "rewards/mean", "train/rewards/mean", "reward_mean", "mean_reward",
    "objective/rlhf_reward", "env/reward", "rollout/ep_rew_mean", "episode_reward",
)  # fmt: skip
RATES = ("lr", "learning_rate", "train/learning_rate", "train/lr", "optim/lr", "lr/lr", "learning rate")
STEPS = (
    "train/global_step", "trainer/global_step", "global_step", "step", "steps", "iteration", "iterations",
    "iter", "update", "updates", "batch", "_step",
)  # fmt: skip
OWN = ("forecast/", "lr_area", "lr_annealing_area")  # what this package logs itself
SHOWN = 40  # names in a message


class UnknownNameError(ValueError):
    """A name that the source does not have, or several that could be meant."""


def choose(label: str, names: Sequence[str], wanted: str | None, usual: Sequence[str], option: str) -> str:
    """Find the name that is meant.

    Args:
        label: of the source, for the message.
        names: those that exist.
        wanted: what was asked for; None takes the first of the usual ones, or the only one there is.
        usual: what the like is usually called, likeliest first.
        option: of the command line, for the message.

    Raises:
        UnknownNameError: none fits or several do, with the names that exist.
    """
    theirs = [name for name in names if not name.startswith(OWN)]
    if wanted is not None:
        found = [name for name in names if name == wanted] or _alike(names, wanted)
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownNameError(
                f"{label}: {wanted!r} may be one of {listed(found)}: give {option} in full"
            )
        raise UnknownNameError(f"{label} has no {wanted!r}; it has: {listed(names)}")
    for name in usual:
        found = _alike(theirs, name)
        if found:
            if len(found) > 1:
                raise UnknownNameError(f"{label} has several: {listed(found)}: choose one with {option}")
            return found[0]
    if len(theirs) == 1:
        return theirs[0]
    raise UnknownNameError(f"{label}: name one with {option}; it has: {listed(names)}")


def find_rate(names: Sequence[str], wanted: str | None, label: str) -> str | None:
    """The name of the learning rate, None where none was logged."""
    if wanted is not None:
        return choose(label, names, wanted, RATES, "--lr")
    for name in RATES:
        if found := _alike(names, name):
            return found[0]
    # Lightning's LearningRateMonitor: "lr-AdamW", "lr-AdamW/pg1", ...
    monitored = sorted(
        name for name in names if name.split("/")[-1].startswith("lr-") or name.startswith("lr-")
    )
    return monitored[0] if monitored else None


def listed(names: Sequence[str]) -> str:
    """Names for a message, not too many."""
    shown = ", ".join(printable(name, 60) for name in names[:SHOWN])
    more = len(names) - SHOWN
    return (shown or "nothing") + (f" and {more} more" if more > 0 else "")


def _alike(names: Sequence[str], wanted: str) -> list[str]:
    """Names equal but for upper case, or, as exported by Weights & Biases, behind "run name - "."""
    low = wanted.lower()
    return [n for n in names if n.lower() == low] or [n for n in names if n.lower().endswith(f" - {low}")]
