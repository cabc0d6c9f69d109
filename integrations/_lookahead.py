"""Looking ahead of a live PyTorch scheduler on a stand-in that shares no tensor with the optimizer."""

import copy
import itertools
import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingWarmRestarts,
    LRScheduler,
    SequentialLR,
)

Rates = list[float]  # one rate per parameter group


def stand_in(optimizer: Any) -> SimpleNamespace:
    """Copy the hyper-parameters of every parameter group, none of the parameters and nothing of the state."""
    groups = [
        {key: _plain(value, {}) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]

    def step() -> None: ...

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # else schedulers warn about the order
    return SimpleNamespace(
        param_groups=groups, defaults=dict(getattr(optimizer, "defaults", {})), step=step, _opt_called=True
    )


def detach(scheduler: Any, optimizer: Any) -> Any:
    """Copy a scheduler onto a stand-in optimizer.

    Functions, closures and modules are shared, never copied: a lambda that closes over a model stays cheap.
    Callable objects are copied one level deep, so that a counter in them is not moved.
    """
    return _plain(scheduler, {id(scheduler.optimizer): optimizer})


def _plain(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 else value
    if isinstance(value, MethodType):
        owner = memo.get(id(value.__self__))
        return value if owner is None else MethodType(value.__func__, owner)
    if isinstance(value, list | set):
        return type(value)(_plain(item, memo) for item in value)
    if type(value) is tuple:
        return tuple(_plain(item, memo) for item in value)
    if isinstance(value, dict):
        twin = copy.copy(value)
        for key, item in value.items():
            twin[key] = _plain(item, memo)  # not `update`, which adds up in a Counter
        return twin
    if isinstance(value, LRScheduler) or is_deepspeed(value) or _is_callable_object(value):
        twin = copy.copy(value)
        memo[id(value)] = twin
        for key, item in vars(value).items():
            vars(twin)[key] = _plain(item, memo)
        return twin
    return value


def _is_callable_object(value: Any) -> bool:
    """Tell an object whose class defines `__call__` and whose state is a plain dictionary."""
    plain = callable(value) and hasattr(value, "__dict__") and not isinstance(value, type)
    return plain and not isinstance(value, torch.nn.Module) and type(value).__module__ not in _BUILT_IN


def is_deepspeed(scheduler: Any) -> bool:
    """Tell one of DeepSpeed's schedulers: they count from -1, under a name of their own."""
    names = ("last_batch_iteration", "optimizer", "get_lr", "step")
    return not isinstance(scheduler, LRScheduler) and all(hasattr(scheduler, name) for name in names)


_BUILT_IN = {"builtins", "functools", "_functools", "torch"}


def position(scheduler: Any) -> int:
    """Count how often the scheduler was stepped."""
    if isinstance(scheduler, ChainedScheduler):
        return max(position(member) for member in scheduler._schedulers)
    if is_deepspeed(scheduler):
        return max(int(scheduler.last_batch_iteration) + 1, 0)
    return max(int(scheduler.last_epoch), 0)


def rates_now(optimizer: Any) -> Rates:
    """Read the present rate of every parameter group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def rewind(scheduler: Any) -> bool:
    """Put a detached scheduler and its stand-in back to the start, the way its constructor left them.

    Returns:
        False where that cannot be done because the scheduler keeps a count of its own.
    """
    _start_rates(scheduler)
    return _restart(scheduler)


def _restart(scheduler: Any) -> bool:
    if is_deepspeed(scheduler):
        _deepspeed_rates(scheduler, 0)
        return True
    if isinstance(scheduler, ChainedScheduler):
        return all([_restart(member) for member in scheduler._schedulers])
    if isinstance(scheduler, SequentialLR):
        known = [_restart(member) for member in scheduler._schedulers]
        _start_rates(scheduler)
        _undo(scheduler)
        scheduler._schedulers[0]._initial_step()
        scheduler.last_epoch = 0
        return all(known)
    scheduler.last_epoch = -1
    if isinstance(scheduler, CosineAnnealingWarmRestarts):
        scheduler.T_cur, scheduler.T_i = -1, scheduler.T_0
    scheduler._initial_step()
    return type(scheduler).step in (LRScheduler.step, CosineAnnealingWarmRestarts.step)


def _start_rates(scheduler: Any) -> None:
    for group in scheduler.optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])


def _undo(scheduler: Any) -> None:
    for member in scheduler._schedulers:
        if hasattr(member, "_schedulers"):
            _undo(member)
        else:
            member.last_epoch -= 1


def simulate(scheduler: Any, updates: int) -> Iterator[Rates]:
    """Step a detached scheduler: its rates now, and after each of the following updates."""
    yield rates_now(scheduler.optimizer)
    for _ in range(updates):
        scheduler.step()
        yield rates_now(scheduler.optimizer)


def formula(scheduler: Any) -> Callable[[int], Rates] | None:
    """Find the rates after any number of updates of a detached scheduler, without stepping through them.

    Returns:
        A function of the number of updates, or None where the scheduler can only be simulated.
    """
    if isinstance(scheduler, SequentialLR):
        return _sequential(scheduler)
    if isinstance(scheduler, ChainedScheduler):
        return _chained(scheduler)
    if isinstance(scheduler, CosineAnnealingWarmRestarts):
        return _warm_restarts(scheduler)
    if is_deepspeed(scheduler):
        return lambda update: _deepspeed_rates(scheduler, update)
    if type(scheduler).step is not LRScheduler.step:
        return None
    if hasattr(scheduler, "_get_closed_form_lr"):
        return _reading(scheduler, scheduler._get_closed_form_lr)
    return None if depends_on_rate(scheduler) else _reading(scheduler, scheduler.get_lr)


def depends_on_rate(scheduler: Any) -> bool:
    """Tell whether the next rate follows from the present one, rather than from the count of updates."""
    if isinstance(scheduler, SequentialLR | ChainedScheduler):
        return any(depends_on_rate(member) for member in scheduler._schedulers)
    if is_deepspeed(scheduler):
        return False  # they compute from their own settings, and so lead back from a rate set by hand
    probe = detach(scheduler, stand_in(scheduler.optimizer))
    read = _reading(probe, probe.get_lr)
    at = [max(position(scheduler), 1) + i for i in range(3)]
    before = [read(update) for update in at]
    for group in probe.optimizer.param_groups:
        group["lr"] = 3.0 * group["lr"] + 1e-3
    return before != [read(update) for update in at]


def _reading(scheduler: Any, read: Callable[[], Sequence[Any]]) -> Callable[[int], Rates]:
    def rates(update: int) -> Rates:
        scheduler.last_epoch = update
        scheduler._get_lr_called_within_step = True  # else get_lr warns
        return [float(rate) for rate in read()]

    return rates


def _deepspeed_rates(scheduler: Any, update: int) -> Rates:
    log = logging.getLogger("DeepSpeed")
    before, log.disabled = log.disabled, True  # it warns of being asked before the first update
    try:
        scheduler.step(update - 1)
    finally:
        log.disabled = before
    return rates_now(scheduler.optimizer)


def _sequential(scheduler: Any) -> Callable[[int], Rates] | None:
    parts = [formula(member) for member in scheduler._schedulers]
    if any(part is None for part in parts):
        return None
    starts = [0, *scheduler._milestones]

    def rates(update: int) -> Rates:
        i = bisect_right(scheduler._milestones, update)
        return parts[i](update - starts[i])  # type: ignore[misc]

    return rates


def _chained(scheduler: Any) -> Callable[[int], Rates] | None:
    """Multiply the members' factors: right where each of them only multiplies, which the caller checks."""
    parts = [formula(member) for member in scheduler._schedulers]
    if any(part is None for part in parts):
        return None
    bases = [float(group.get("initial_lr", group["lr"])) for group in scheduler.optimizer.param_groups]

    def rates(update: int) -> Rates:
        members = [part(update) for part in parts]  # type: ignore[misc]
        return [
            base * math.prod(rate / base for rate in column) if base else 0.0
            for base, column in zip(bases, zip(*members, strict=True), strict=True)
        ]

    return rates


def _warm_restarts(scheduler: Any) -> Callable[[int], Rates]:
    read = _reading(scheduler, scheduler.get_lr)

    def rates(update: int) -> Rates:
        since, length = update, scheduler.T_0
        if scheduler.T_mult == 1:
            since %= length
        while since >= length:
            since, length = since - length, length * scheduler.T_mult
        scheduler.T_cur, scheduler.T_i = since, length
        return read(update)

    return rates


def agree(a: Sequence[Rates], b: Sequence[Rates], tolerance: float) -> bool:
    """Tell whether two series of rates are the same within a share of the highest rate."""
    scale = max(itertools.chain.from_iterable(a), default=0.0)
    return all(
        abs(x - y) <= tolerance * scale
        for left, right in zip(a, b, strict=True)
        for x, y in zip(left, right, strict=True)
    )


def unknowable(optimizer: Any, scheduler: Any) -> str | None:
    """Say why the rates of a run cannot be known ahead; None when they can."""
    groups: Sequence[Mapping[str, Any]] = optimizer.param_groups
    if scheduler is not None and not isinstance(scheduler, LRScheduler) and not is_deepspeed(scheduler):
        return f"{type(scheduler).__name__} is a scheduler of no kind known here"
    if type(scheduler).__name__ in {"ReduceLROnPlateau", "GreedyLR"}:
        return f"{type(scheduler).__name__} reacts to the metrics"
    if "schedulefree" in type(optimizer).__name__.lower() or any("weight_sum" in group for group in groups):
        return f"{type(optimizer).__name__} averages instead of following a schedule"
    if any(group.get("lr") is None or "d0" in group for group in groups):
        return f"{type(optimizer).__name__} sets its own rate"
    return None
