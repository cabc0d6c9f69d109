"""The look-ahead is compared with the rates of an identical optimizer that is really stepped."""

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as lrs
from torch.optim.swa_utils import SWALR

from scale_callbacks.integrations import torch as adapter
from scale_callbacks.integrations.torch import schedule_of

Factory = Callable[[torch.optim.Optimizer], lrs.LRScheduler]
N = 400


class Counting:
    """A callable object with state, which LambdaLR stores in its state_dict."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, step: int) -> float:
        self.calls += 1
        return 1 / (1 + 0.01 * step)


class OwnStep(lrs.LRScheduler):
    """A user's scheduler that keeps its own count, so that only stepping it tells what comes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.mine = {"count": [0]}
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [base / (1 + self.mine["count"][0] // 40) for base in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        self.mine["count"][0] += 1
        super().step()


def closure(optimizer: torch.optim.Optimizer) -> lrs.LambdaLR:
    model = torch.nn.Linear(300, 300)  # a closure may hold a model: it must not be copied
    return lrs.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 30) * (0 * model.in_features + 0.99**step)
    )


def warmup_cosine(optimizer: torch.optim.Optimizer) -> lrs.SequentialLR:
    parts = [lrs.LinearLR(optimizer, 0.01, 1.0, 40), lrs.CosineAnnealingLR(optimizer, N - 40, eta_min=1e-4)]
    return lrs.SequentialLR(optimizer, parts, [40])


def nested(optimizer: torch.optim.Optimizer) -> lrs.SequentialLR:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch takes the building of a nested scheduler for a wrong order
        parts = [lrs.ConstantLR(optimizer, 0.5, 10), lrs.ExponentialLR(optimizer, 0.99)]
        inner = lrs.SequentialLR(optimizer, parts, [60])
        return lrs.SequentialLR(optimizer, [inner, lrs.PolynomialLR(optimizer, 200, 2.0)], [150])


def restarts_after_warmup(optimizer: torch.optim.Optimizer) -> lrs.SequentialLR:
    parts = [lrs.LinearLR(optimizer, 0.1, 1.0, 20), lrs.CosineAnnealingWarmRestarts(optimizer, 50, 2)]
    return lrs.SequentialLR(optimizer, parts, [20])


def chained(optimizer: torch.optim.Optimizer) -> lrs.ChainedScheduler:
    return lrs.ChainedScheduler([lrs.LinearLR(optimizer, 0.1, 1.0, 30), lrs.StepLR(optimizer, 90, 0.3)])


def chained_cosine(optimizer: torch.optim.Optimizer) -> lrs.ChainedScheduler:
    return lrs.ChainedScheduler([lrs.ConstantLR(optimizer, 0.1, 25), lrs.CosineAnnealingLR(optimizer, N)])


TORCH: dict[str, Factory] = {
    "LambdaLR closure": closure,
    "LambdaLR object": lambda o: lrs.LambdaLR(o, Counting()),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda step: 0.98 if step > 50 else 1.0),
    "StepLR": lambda o: lrs.StepLR(o, 77, 0.5),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [50, 51, 300], 0.3),
    "ConstantLR": lambda o: lrs.ConstantLR(o, 0.25, 100),
    "LinearLR": lambda o: lrs.LinearLR(o, 0.05, 0.9, 120),
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, 0.993),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 333, 1.5),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, N, eta_min=1e-3),
    "CosineAnnealingLR past its end": lambda o: lrs.CosineAnnealingLR(o, 90),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 30, 2, eta_min=1e-4),
    "CosineAnnealingWarmRestarts even": lambda o: lrs.CosineAnnealingWarmRestarts(o, 70),
    "CyclicLR": lambda o: lrs.CyclicLR(o, 1e-3, 1e-1, 45),
    "CyclicLR exp_range": lambda o: lrs.CyclicLR(o, 1e-3, 1e-1, 45, mode="exp_range", gamma=0.999),
    "CyclicLR own scale": lambda o: lrs.CyclicLR(o, 1e-3, 1e-1, 45, scale_fn=lambda x: 1 / x),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, 0.2, total_steps=N + 200),
    "OneCycleLR three phases": lambda o: lrs.OneCycleLR(o, 0.2, total_steps=N + 200, three_phase=True),
    "SWALR": lambda o: SWALR(o, swa_lr=0.02, anneal_epochs=150),
    "SequentialLR": warmup_cosine,
    "SequentialLR nested": nested,
    "SequentialLR with restarts": restarts_after_warmup,
    "ChainedScheduler": chained,
    "ChainedScheduler cosine": chained_cosine,
    "a user's own": OwnStep,
}


def transformers_schedulers() -> dict[str, Factory]:
    optimization = pytest.importorskip("transformers.optimization")
    own: dict[str, dict[str, float]] = {
        "warmup_stable_decay": {"num_decay_steps": 80, "min_lr_ratio": 0.1},
        "cosine_with_min_lr": {"min_lr": 1e-3},
        "cosine_warmup_with_min_lr": {"min_lr": 1e-3},
        "polynomial": {"power": 2.0},
    }
    names = [name.value for name in optimization.SchedulerType]
    names = [name for name in names if name not in {"reduce_lr_on_plateau", "greedy"}]

    def make(name: str, optimizer: torch.optim.Optimizer) -> lrs.LRScheduler:
        return optimization.get_scheduler(name, optimizer, 40, N, scheduler_specific_kwargs=own.get(name))

    return {f"transformers {name}": partial(make, name) for name in names}


def deepspeed_schedulers() -> dict[str, Factory]:
    try:
        from deepspeed.runtime import lr_schedules as ds
    except ImportError:  # with the oldest supported versions
        return {}
    warm = {"warmup_min_lr": 0.0, "warmup_max_lr": 0.1, "warmup_num_steps": 40}
    return {
        "DeepSpeed WarmupLR": lambda o: ds.WarmupLR(o, **warm),
        "DeepSpeed WarmupLR linear": lambda o: ds.WarmupLR(o, **warm, warmup_type="linear"),
        "DeepSpeed WarmupDecayLR": lambda o: ds.WarmupDecayLR(o, total_num_steps=N, **warm),
        "DeepSpeed WarmupCosineLR": lambda o: ds.WarmupCosineLR(o, total_num_steps=N, warmup_num_steps=40),
        "DeepSpeed OneCycle": lambda o: ds.OneCycle(o, 1e-3, 0.1, cycle_first_step_size=150),
        "DeepSpeed LRRangeTest": lambda o: ds.LRRangeTest(o, 1e-3, lr_range_test_step_size=50),
    }


ALL = TORCH | transformers_schedulers() | deepspeed_schedulers()
every_scheduler = pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())


def optimizer_of(lr: float = 0.1) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], lr=lr)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    return optimizer


def stepped(optimizer: torch.optim.Optimizer, scheduler: lrs.LRScheduler, steps: int) -> list[float]:
    """The rates that are applied at the next steps."""
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def truth(make: Factory, steps: int = N) -> list[float]:
    optimizer = optimizer_of()
    return stepped(optimizer, make(optimizer), steps)


@every_scheduler
def test_plan_is_what_a_really_stepped_optimizer_applies(make: Factory) -> None:
    optimizer = optimizer_of()
    schedule = schedule_of(optimizer, make(optimizer), N)
    assert schedule.horizon == N
    np.testing.assert_allclose(schedule.lr(np.arange(1, N + 1)), truth(make), rtol=1e-9, atol=1e-12)


@every_scheduler
def test_plan_made_in_mid_training_holds_past_and_future(make: Factory) -> None:
    optimizer = optimizer_of()
    scheduler = make(optimizer)
    stepped(optimizer, scheduler, 137)
    schedule = schedule_of(optimizer, scheduler, N, step=137)
    at = np.arange(138 if make is OwnStep else 1, N + 1)  # nobody can wind back a count it does not know
    np.testing.assert_allclose(schedule.lr(at), np.array(truth(make))[at - 1], rtol=1e-9, atol=1e-12)


@every_scheduler
def test_live_scheduler_and_optimizer_are_not_disturbed(make: Factory) -> None:
    optimizer = optimizer_of()
    scheduler = make(optimizer)
    stepped(optimizer, scheduler, 5)
    step_function = optimizer.step
    state = copy.deepcopy(optimizer.state_dict())
    plan = copy.deepcopy(scheduler.state_dict())
    parameter = optimizer.param_groups[0]["params"][0]
    schedule_of(optimizer, scheduler, N, step=5)
    assert str(scheduler.state_dict()) == str(plan)
    assert str(optimizer.state_dict()) == str(state)
    assert optimizer.step == step_function
    assert optimizer.param_groups[0]["params"][0] is parameter
    assert stepped(optimizer, scheduler, 100) == truth(make, 105)[5:]


@every_scheduler
def test_long_plan_is_read_off_the_closed_form(make: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "EXACT", 100)
    monkeypatch.setattr(adapter, "CHECKED", 60)
    optimizer = optimizer_of()
    scheduler = make(optimizer)
    stepped(optimizer, scheduler, 70)
    schedule = schedule_of(optimizer, scheduler, N, step=70)
    rates, at = np.array(truth(make)), np.arange(71 if make is OwnStep else 1, N + 1)
    np.testing.assert_allclose(schedule.lr(at), rates[at - 1], rtol=1e-6, atol=1e-9 * rates.max())


@pytest.mark.parametrize(
    ("name", "closed"),
    [
        ("linear", lambda t: 0.1 * min((t - 1) / 2e5, (1e7 - t + 1) / 9.8e6)),
        ("warmup_stable_decay", lambda t: 0.1 * min((t - 1) / 2e5, 1.0, (1e7 - t + 1) / 1e6)),
        (
            "cosine",
            lambda t: (
                0.05 * (1 + math.cos(math.pi * (t - 1 - 2e5) / 9.8e6)) if t > 2e5 else 0.1 * (t - 1) / 2e5
            ),
        ),
    ],
)
def test_ten_million_steps_are_sampled_not_stepped(name: str, closed: Callable[[int], float]) -> None:
    optimization = pytest.importorskip("transformers.optimization")
    own = {"num_decay_steps": 1_000_000, "decay_type": "linear"} if name == "warmup_stable_decay" else None
    optimizer = optimizer_of()
    scheduler = optimization.get_scheduler(name, optimizer, 200_000, 10**7, scheduler_specific_kwargs=own)
    calls = 0
    inner = scheduler.lr_lambdas[0]

    def counted(step: int) -> float:
        nonlocal calls
        calls += 1
        return inner(step)

    scheduler.lr_lambdas = [counted]
    schedule = schedule_of(optimizer, scheduler, 10**7)
    assert calls < 50_000
    at = np.unique(np.linspace(1, 10**7, 5003).astype(int))
    np.testing.assert_allclose(schedule.lr(at), [closed(int(t)) for t in at], atol=2e-5 * 0.1)


def test_warmup_then_cosine_of_ten_million_steps() -> None:
    optimizer, n = optimizer_of(), 10**7
    parts = [lrs.LinearLR(optimizer, 1e-3, 1.0, 3000), lrs.CosineAnnealingLR(optimizer, n - 3000)]
    schedule = schedule_of(optimizer, lrs.SequentialLR(optimizer, parts, [3000]), n)
    at = np.unique(np.concatenate((np.linspace(3001, n, 4001).astype(int), np.arange(3001, 3100))))
    wanted = 0.05 * (1 + np.cos(np.pi * (at - 3001) / (n - 3000)))
    np.testing.assert_allclose(schedule.lr(at), wanted, atol=2e-6)
    np.testing.assert_allclose(schedule.lr([1, 1501]), [1e-4, 0.1 * 0.5005], rtol=1e-3)


def test_scheduler_stepped_at_each_epochs_end_gives_stairs() -> None:
    optimizer = optimizer_of()
    schedule = schedule_of(optimizer, lrs.StepLR(optimizer, 2, 0.5), 100, steps_per_update=10)
    assert schedule.lr([1, 20]).tolist() == [0.1, 0.1]
    assert schedule.lr([21, 40]).tolist() == [0.05, 0.05]
    assert schedule.lr([81, 100]).tolist() == pytest.approx([0.1 / 16] * 2)


def test_rate_set_by_hand_is_carried_on_where_the_scheduler_builds_on_it() -> None:
    optimizer = optimizer_of()
    scheduler = lrs.ExponentialLR(optimizer, 0.99)
    past = stepped(optimizer, scheduler, 50)
    optimizer.param_groups[0]["lr"] = 0.5
    schedule = schedule_of(optimizer, scheduler, 200, step=50)
    np.testing.assert_allclose(schedule.lr(np.arange(1, 51)), past, rtol=1e-9)
    np.testing.assert_allclose(schedule.lr(np.arange(51, 201)), stepped(optimizer, scheduler, 150), rtol=1e-9)


def test_scheduler_made_late_starts_late() -> None:
    optimizer = optimizer_of()
    schedule = schedule_of(optimizer, lrs.StepLR(optimizer, 10, 0.1), 200, step=100)
    assert schedule.lr([50, 110]).tolist() == pytest.approx([0.1, 0.1])
    assert schedule.lr(111) == pytest.approx(0.01)


def test_no_scheduler_means_a_constant_rate() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = schedule_of(optimizer_of(0.3), None, 50)
    assert schedule.lr(np.arange(1, 51)).tolist() == [0.3] * 50


def plateau(optimizer: torch.optim.Optimizer) -> lrs.ReduceLROnPlateau:
    return lrs.ReduceLROnPlateau(optimizer)


def transformers_plateau(optimizer: torch.optim.Optimizer) -> object:
    return pytest.importorskip("transformers").get_scheduler("reduce_lr_on_plateau", optimizer)


def greedy(optimizer: torch.optim.Optimizer) -> object:
    optimization = pytest.importorskip("transformers.optimization")
    if not hasattr(optimization, "get_greedy_schedule"):
        pytest.skip("this transformers has no GreedyLR")
    return optimization.get_greedy_schedule(optimizer)


@pytest.mark.parametrize("make", [plateau, transformers_plateau, greedy])
def test_scheduler_that_reacts_to_the_run_is_taken_to_hold_and_says_so(make: Factory) -> None:
    optimizer = optimizer_of(0.3)
    scheduler = make(optimizer)
    with pytest.warns(UserWarning, match="cannot be known ahead") as caught:
        schedule = schedule_of(optimizer, scheduler, 50)
    assert len(caught) == 1
    assert schedule.lr([1, 50]).tolist() == [0.3, 0.3]


def test_schedule_free_optimizer_is_taken_to_hold_and_says_so() -> None:
    class AdamWScheduleFree(torch.optim.SGD):
        pass

    with pytest.warns(UserWarning, match="AdamWScheduleFree averages"):
        schedule_of(AdamWScheduleFree([torch.nn.Parameter(torch.ones(1))], lr=0.1), None, 50)


def test_scheduler_that_fails_ahead_is_taken_to_hold_and_says_so() -> None:
    def fails(step: int) -> float:
        if step > 0:
            raise KeyError("not yet")
        return 1.0

    optimizer = optimizer_of()
    scheduler = lrs.OneCycleLR(optimizer, 0.2, total_steps=30)
    with pytest.warns(UserWarning, match="followed for 31 of 50 updates"):
        schedule = schedule_of(optimizer, scheduler, 50)
    assert schedule.lr(50) == schedule.lr(31)
    optimizer = optimizer_of()
    with pytest.warns(UserWarning, match="1 of 50 updates"):
        assert schedule_of(optimizer, lrs.LambdaLR(optimizer, fails), 50).lr(50) == 0.1


def groups(*sizes: int) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.ones(n))], "lr": 0.1 * n} for n in sizes], momentum=0.9
    )


def test_plan_follows_the_group_with_the_most_parameters() -> None:
    optimizer = groups(2, 5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # groups of one shape need no warning
        schedule = schedule_of(optimizer, lrs.StepLR(optimizer, 10), 50)
    assert schedule.peak == 0.5


def test_group_of_another_shape_is_named_once() -> None:
    optimizer = groups(2, 5, 3)
    same, other = (lambda step: 0.9**step), (lambda step: 1.0)
    with pytest.warns(UserWarning, match=r"follows parameter group 1.*group 2 has another shape") as caught:
        schedule_of(optimizer, lrs.LambdaLR(optimizer, [same, same, other]), 50)
    assert len(caught) == 1


def test_look_ahead_copies_no_tensor_of_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = optimizer_of()
    scheduler = closure(optimizer)
    optimizer.step()

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("a tensor was copied")

    for name in ("__deepcopy__", "clone", "__reduce_ex__"):
        monkeypatch.setattr(torch.Tensor, name, forbidden)
    plan = schedule_of(optimizer, scheduler, N)
    assert plan.lr(1) != plan.lr(N)  # it was looked ahead, not held


def test_learning_rate_held_in_a_tensor_is_read_and_left_alone() -> None:
    optimizer = optimizer_of()
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    scheduler = lrs.CosineAnnealingLR(optimizer, N)
    live = optimizer.param_groups[0]["lr"]
    schedule = schedule_of(optimizer, scheduler, N)
    assert optimizer.param_groups[0]["lr"] is live
    assert live.item() == pytest.approx(0.1)
    np.testing.assert_allclose(schedule.lr([1, 201]), [0.1, 0.05], rtol=1e-3)


@pytest.mark.parametrize("horizon", [0, -3, 2.5])
def test_bad_horizon_is_refused(horizon: float) -> None:
    with pytest.raises(ValueError, match=f"horizon={horizon}"):
        schedule_of(optimizer_of(), None, horizon)  # type: ignore[arg-type]


def test_negative_rates_are_refused() -> None:
    optimizer = optimizer_of()
    with pytest.raises(ValueError, match="must be finite and not negative"):
        schedule_of(optimizer, lrs.LambdaLR(optimizer, lambda step: 1.0 - 0.1 * step), 50)


def test_bad_steps_per_update_and_empty_optimizer_are_refused() -> None:
    with pytest.raises(ValueError, match="steps_per_update=0"):
        schedule_of(optimizer_of(), None, 10, steps_per_update=0)
    with pytest.raises(ValueError, match="no parameter groups"):
        schedule_of(object(), None, 10)
