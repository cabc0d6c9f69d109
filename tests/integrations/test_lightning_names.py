"""Names that a Lightning module logs late, seldom or never."""

import logging
from typing import Any

import numpy as np
import pytest

from scale_callbacks.integrations.lightning import LossForecast
from tests.integrations.lightning_runs import RECORDED, Net, Silent, Validated, data, told, trainer

pytestmark = RECORDED


@pytest.mark.parametrize(
    ("settings", "batches", "seen"),
    [({"max_steps": 200}, 100, 64), ({"max_epochs": 3}, 20, 20), ({"max_epochs": 1}, 20, 20)],
)
def test_unknown_name_is_refused_when_the_names_have_settled(
    settings: dict[str, Any], batches: int, seen: int
) -> None:
    net = Net()
    with pytest.raises(ValueError, match=r"monitor='loss' is not logged.* it logs: train_loss\."):
        trainer(LossForecast("loss"), **settings).fit(net, data(batches=batches))
    assert len(net.losses) == seen


def test_names_that_the_sanity_check_tells_are_listed_too() -> None:
    with pytest.raises(ValueError, match=r"it logs: train_loss, val_loss"):
        trainer(LossForecast("loss")).fit(Validated(), data(), data(batches=2))


@pytest.mark.parametrize("first", [2, 9, 30])
def test_name_logged_for_the_first_time_on_a_later_batch_is_waited_for(first: int) -> None:
    class Later(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("lr", self.lr)
            return super().training_step(batch, batch_idx)

        def log(self, name: str, *args: Any, **kwargs: Any) -> None:
            if name != "train_loss" or self.global_step + 1 >= first:
                super().log(name, *args, **kwargs)

    callback, net = LossForecast(), Later()
    trainer(callback, max_steps=120).fit(net, data(batches=120))
    found = next(2**i for i in range(9) if 2**i >= first) + 1
    assert [step for step, *_ in told(callback)] == list(range(found, 121))
    np.testing.assert_allclose([value for _, value, *_ in told(callback)], net.losses[found - 1 :], rtol=1e-6)
    assert callback.warnings == {}
    assert callback.forecast is not None


def test_name_logged_every_so_often_is_observed_where_it_is_logged() -> None:
    class Seldom(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("lr", self.lr)
            self.log_as = {"name": "train_loss"} if self.global_step % 10 == 9 else None
            return super().training_step(batch, batch_idx)

    callback, net = LossForecast(), Seldom()
    trainer(callback, max_steps=200).fit(net, data(batches=200))
    assert [step for step, *_ in told(callback)] == list(range(20, 201, 10))
    assert callback.forecast is not None


def test_name_that_might_have_come_later_is_warned_of_and_training_goes_on(caplog: Any) -> None:
    callback, net = LossForecast("loss"), Validated()
    with caplog.at_level(logging.WARNING, logger="scale_callbacks"):
        fit = trainer(callback, num_sanity_val_steps=0, max_epochs=2)
        fit.fit(net, data(batches=100), data(batches=2))
    assert fit.global_step == 200
    assert sum("it logs: train_loss, val_loss" in message for message in caplog.messages) == 1
    assert told(callback) == []


def test_silent_module_with_unknown_validation_names_loses_no_loss() -> None:
    class Both(Silent):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch))

    callback, net = LossForecast(), Both()
    trainer(callback, num_sanity_val_steps=0).fit(net, data(), data(batches=2))
    np.testing.assert_allclose([value for _, value, _, _ in told(callback)], net.losses, rtol=1e-6)
