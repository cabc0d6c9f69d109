"""Windows that wait on their device are read in time, and tell what they would have told at once."""

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from scale_callbacks import LossForecast
from scale_callbacks.integrations import _trainer
from scale_callbacks.integrations._rhythm import UNREAD
from scale_callbacks.integrations._watch import Watch
from tests.integrations.lightning_runs import QUIET, Net, Recording, Silent, data, trainer

pytestmark = QUIET
STEPS = 120


@pytest.fixture(autouse=True)
def windows_of_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scale_callbacks.integrations.lightning.Monitor", Recording)
    monkeypatch.setattr("scale_callbacks.due.LINEAR", 1 / 8)  # some 15 forecasts a run do
    monkeypatch.setattr("scale_callbacks.due.RATIO", 1.5)
    monkeypatch.setattr(_trainer, "FEWEST_READS", STEPS // 2)


class Holed(Net):
    """Some of its losses are not finite, and ten in a row."""

    def loss(self, batch: Any) -> torch.Tensor:
        bad = self.global_step % 7 == 3 or 50 <= self.global_step < 60
        return super().loss(batch) + (math.nan if bad else 0.0)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for p in self.parameters():
            p.grad = torch.nan_to_num(p.grad)


class At(pl.Callback):
    """Does something after one step."""

    def __init__(self, step: int, what: Callable[[pl.Trainer], object]) -> None:
        self.step, self.what = step, what

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.what(trainer)


def fit(module: type[Net], *others: pl.Callback, **settings: Any) -> LossForecast:
    callback = LossForecast()
    batches = STEPS * settings.get("accumulate_grad_batches", 1)
    trainer(callback, *others, max_steps=STEPS, **settings).fit(module(), data(batches=batches))
    return callback


def told(callback: LossForecast) -> list[tuple[int, float, int, Any]]:
    assert callback._watch is not None
    return callback._watch.monitor.__dict__["told"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("module", [Net, Silent, Holed])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_windows_read_later_tell_what_they_would_have_told_at_once(
    module: type[Net], accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = fit(module, accumulate_grad_batches=accumulate)
    monkeypatch.setattr(Watch, "patient", False)
    at_once = fit(module, accumulate_grad_batches=accumulate)
    assert told(later) == told(at_once) != []
    assert later.state_dict() == at_once.state_dict()
    assert later.warnings == at_once.warnings


@pytest.mark.parametrize("step", [67, 68])
def test_a_state_in_between_holds_the_windows_that_were_not_read(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[Any] = []

    def keep(trainer: pl.Trainer) -> None:
        callback = next(c for c in trainer.callbacks if isinstance(c, LossForecast))  # type: ignore[attr-defined]
        assert callback._watch is not None
        states.append((callback._watch._collector.unread, callback.state_dict()))

    fit(Net, At(step, keep))
    monkeypatch.setattr(Watch, "patient", False)
    fit(Net, At(step, keep))
    (unread, later), (none, at_once) = states
    assert unread > 1
    assert none == 0
    assert later == at_once


def stop(trainer: pl.Trainer) -> None:
    trainer.should_stop = True


def interrupt(trainer: pl.Trainer) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("end", [stop, interrupt])
def test_a_training_that_ends_early_has_been_read_to_its_last_window(end: Any) -> None:
    callback = LossForecast()
    loop = trainer(callback, At(69, end), max_steps=STEPS)
    try:
        loop.fit(Net(), data(batches=STEPS))
    except (KeyboardInterrupt, SystemExit):
        assert end is interrupt
    last = loop.global_step // 2 * 2
    assert last >= 68
    assert [step for step, *_ in told(callback)] == list(range(2, last + 1, 2))


def test_no_more_windows_wait_than_are_to_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scale_callbacks.due.FIRST", 1.0)  # one forecast, at the end
    monkeypatch.setattr("scale_callbacks.due.LINEAR", 1.0)
    monkeypatch.setattr(_trainer, "FEWEST_READS", STEPS)
    unread: list[int] = []

    class Looking(LossForecast):
        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            assert self._watch is not None
            unread.append(self._watch._collector.unread)

    Looking.__module__ = LossForecast.__module__
    trainer(Looking(), max_steps=STEPS).fit(Net(), data(batches=STEPS))
    assert max(unread) == UNREAD - 1
    assert unread[-1] == 0
