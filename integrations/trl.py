"""TRL: what its trainers call the reward, and the evidence that they log beside it."""

import math
from collections.abc import Mapping
from typing import Any

EVAL = "eval_"

# In place of a name that a trainer does not log. Online DPO scores its completions with a reward model.
_OTHER_NAMES = {"reward": ("objective/scores",)}

# Signals taken along, by the name the forecaster knows, with what the trainers call them.
_SIGNALS = {
    "reward_std": ("reward_std",),
    "frac_reward_zero_std": ("frac_reward_zero_std",),
    "entropy": ("entropy", "objective/entropy"),
    "kl": ("kl", "objective/kl"),
    "clipped_ratio": ("completions/clipped_ratio",),
}


def metric_name(monitor: str, logs: Mapping[str, Any]) -> str | None:
    """Find the name under which a row of logs holds the monitored metric.

    Besides the exact name, a reward function's own will do: `accuracy_reward` finds
    `rewards/accuracy_reward/mean` (or `rewards/accuracy_reward`, as older versions have it). `reward` is the
    weighted total of GRPO and RLOO, and finds `objective/scores` of Online DPO. Each of them may have the
    prefix `eval_`.

    Args:
        monitor: the name a user gave.
        logs: one row.

    Returns:
        The name in the row, None where it is not there.
    """
    if monitor in logs:
        return monitor
    prefix = EVAL if monitor.startswith(EVAL) else ""
    name = monitor.removeprefix(prefix)
    candidates = (f"{name}/mean", f"rewards/{name}/mean", f"rewards/{name}", *_OTHER_NAMES.get(name, ()))
    return next((prefix + candidate for candidate in candidates if prefix + candidate in logs), None)


def evidence(logs: Mapping[str, Any], metric: str) -> dict[str, float]:
    """What a row says about the learning signal behind its reward: the numbers that are there and finite.

    Args:
        logs: one row.
        metric: the watched metric's name in it. That of one reward function brings its own spread along, and
            that of an evaluation the evaluation's signals.
    """
    prefix = EVAL if metric.startswith(EVAL) else ""
    signals = {name: tuple(prefix + there for there in names) for name, names in _SIGNALS.items()}
    if metric.endswith("/mean"):
        signals["reward_std"] = (f"{metric.removesuffix('/mean')}/std", *signals["reward_std"])
    found: dict[str, float] = {}
    for name, names in signals.items():
        value = next((number(logs[there]) for there in names if logs.get(there) is not None), None)
        if value is not None and math.isfinite(value):
            found[name] = value
    return found


def number(value: Any) -> float | None:
    """A logged value as a float; None for what is no number."""
    try:
        return None if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError):  # the last from a tensor of several
        return None


def rows_without_reward(args: Any) -> int:
    """How many rows may pass before the first reward: completions are used for several optimizer steps.

    Args:
        args: a trainer's arguments.
    """
    iterations = getattr(args, "num_iterations", 1) or 1
    batches = getattr(args, "steps_per_generation", None) or 1
    return math.ceil(iterations * batches / max(getattr(args, "gradient_accumulation_steps", 1), 1))
