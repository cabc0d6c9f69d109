"""LossForecast in Lightning modules that step their optimizers themselves."""

from typing import Any

import numpy as np
import pytest
import torch

from scale_callbacks.integrations.lightning import LossForecast
from tests.integrations.lightning_runs import RECORDED, Net, data, told, trainer

pytestmark = RECORDED


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return {"loss": loss}


class ManualSilent(Manual):
    log_as = None


@pytest.mark.parametrize("module", [Manual, ManualSilent])
def test_manual_optimisation(module: type[Net]) -> None:
    callback, net = LossForecast(), module()
    trainer(callback, max_epochs=3).fit(net, data())
    np.testing.assert_allclose([value for _, value, _, _ in told(callback)], net.losses, rtol=1e-6)
    assert callback.forecast is not None
    assert callback.forecast.horizon == 60


class Two(Net):
    """Two optimizers; the second holds more parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.other = torch.nn.Linear(4, 30)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        small, large = self.optimizers()
        for optimizer in (small, large):
            loss = super().training_step(batch, batch_idx) + self.other(batch[0]).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.lr_schedulers().step()

    def configure_optimizers(self) -> Any:
        small = torch.optim.SGD(self.net.parameters(), lr=0.05)
        large = torch.optim.SGD(self.other.parameters(), lr=0.01)
        return [small, large], [torch.optim.lr_scheduler.StepLR(large, 10, 0.5)]


class Alternating(Two):
    """A critic that steps on every batch, and a generator that does on each fifth."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        small, large = self.optimizers()
        for optimizer in (small, large) if batch_idx % 5 == 0 else (large,):
            loss = Net.training_step(self, batch, batch_idx) + self.other(batch[0]).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.lr_schedulers().step()


def test_manual_optimisation_that_steps_now_and_then_is_timed() -> None:
    callback = LossForecast()
    fit = trainer(callback, max_epochs=4)
    fit.fit(Alternating(), data(batches=50))
    assert fit.global_step == 240
    forecasts = callback._watch.monitor.history  # type: ignore[union-attr]
    assert forecasts[-1].step == 240
    assert callback.forecast is not None
    assert callback.forecast.horizon == 240
    schedule = callback._watch.schedule  # type: ignore[union-attr]
    # the scheduler halves every 10 batches, each of 1.2 steps; measured after 16 batches and an epoch
    assert schedule.lr([240]).tolist() == pytest.approx([0.01 / 2**19], rel=0.01)
    assert sum("the plan ends at step" in warning for warning in callback.warnings) <= 2


def test_several_optimizers_count_the_steps_of_all_and_follow_the_largest() -> None:
    callback, net = LossForecast(), Two()
    fit = trainer(callback, max_epochs=3)
    fit.fit(net, data())
    assert fit.global_step == 120
    assert [step for step, *_ in told(callback)][-1] == 120
    assert callback.forecast is not None
    assert callback.forecast.horizon == 120
    schedule = callback._watch.monitor.forecaster.schedule  # type: ignore[union-attr]
    assert schedule.lr([1, 20, 21, 41]).tolist() == pytest.approx([0.01, 0.01, 0.005, 0.0025])  # type: ignore[union-attr]
