"""No step waits for the device unless something is due on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import methodcaller
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scale_callbacks.integrations import _trainer, _window
from scale_callbacks.integrations.lightning import LossForecast
from tests.integrations.lightning_runs import QUIET, Net, Silent, Validated, data, trainer

pytestmark = QUIET

READING_OPS = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2"}
READING_METHODS = ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__")


@pytest.fixture(autouse=True)
def a_device_that_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_window, "AT_HAND", frozenset())  # the CPU stands for it


class Syncs(TorchDispatchMode):
    """Counts everything that would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        moved = name == "_to_copy" and "device" in (kwargs or {})
        self.count += name in READING_OPS or moved
        return function(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Syncs]:
    syncs = Syncs()
    with monkeypatch.context() as patch, syncs:
        for name in READING_METHODS:
            original = getattr(torch.Tensor, name)

            def reading(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
                syncs.count += 1
                return _original(*args, **kwargs)

            patch.setattr(torch.Tensor, name, reading)
        yield syncs


@pytest.mark.parametrize(
    "read",
    [float, bool, *(methodcaller(name) for name in ("item", "tolist", "cpu", "numpy", "nonzero"))],
    ids=str,
)
def test_the_count_sees_a_read(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as syncs:
        torch.ones(2).add_(1.0)
        assert syncs.count == 0
        read(torch.ones(()))
        assert syncs.count > 0


class Counted(LossForecast):
    """Counts the reads of each of its steps."""

    __module__ = LossForecast.__module__  # another's hook might log the metric later, which is waited for

    def __init__(self, monitor: str, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monitor)
        self.seen: dict[int, int] = {}
        self._patch = monkeypatch

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        with counted(self._patch) as syncs:
            super().on_train_batch_end(trainer, *args)
        if syncs.count:
            self.seen[trainer.global_step] = syncs.count


@pytest.mark.parametrize(
    ("module", "monitor", "due"),
    [
        (Net, "train_loss", {1, 80, 160, 240}),
        (Silent, "train_loss", {1, 80, 160, 240}),
        (Validated, "val_loss", {1}),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_only_steps_on_which_something_is_due_are_read(
    module: type[Net], monitor: str, due: set[int], accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_trainer, "FEWEST_READS", 3)  # windows of 80 steps: more than slots
    monkeypatch.setattr(_trainer, "MOST_READS", 3)
    callback = Counted(monitor, monkeypatch)
    fit = trainer(
        callback,
        max_steps=240,
        accumulate_grad_batches=accumulate,
        log_every_n_steps=80,
        num_sanity_val_steps=1,
    )
    val = (data(batches=2),) if module is Validated else ()
    fit.fit(module(), data(batches=480), *val)
    assert callback.seen.keys() <= due | {0}
    assert callback.seen.keys() >= due - {1}


@pytest.mark.parametrize("module", [Net, Silent])
def test_windows_are_read_in_one_go_when_a_forecast_is_due(
    module: type[Net], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_trainer, "FEWEST_READS", 300)  # windows of two steps
    callback = Counted("train_loss", monkeypatch)
    trainer(callback, max_steps=600).fit(module(), data(batches=600))
    watch = callback._watch
    assert watch is not None
    assert set(watch.monitor._fired) == callback.seen.keys()
    assert len(callback.seen) < 75
    assert watch.monitor.forecaster.curve.n == 300
    assert {count for step, count in callback.seen.items() if step > 1} == {1}
