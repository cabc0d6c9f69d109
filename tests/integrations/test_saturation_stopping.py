import json
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from scale_callbacks import JsonlSink, SaturationRule, SaturationStopping
from scale_callbacks.saturation import Reason
from tests.integrations.lightning_runs import QUIET, Net, Silent, data, trainer

pytestmark = QUIET


class Rewarded(Net):
    """Logs a reward that saturates within a tenth of 600 steps."""

    log_as = None
    horizon = 600

    def reward(self, step: int) -> float:
        noise = torch.randn((), generator=torch.Generator().manual_seed(step)).item()
        return 1 - 2.0 ** (-step / 20) + 0.1 * noise

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        step = self.trainer.global_step + 1
        self.log("reward", self.reward(step))
        self.log("frac_reward_zero_std", 0.25)
        self.log("reward_std", 0.5)
        return super().training_step(batch, batch_idx)


class Rising(Rewarded):
    def reward(self, step: int) -> float:
        return super().reward(step) + step / 100


class Broken(Rewarded):
    def reward(self, step: int) -> float:
        return float("nan") if step % 2 else 1.0


def fit(
    callback: SaturationStopping, module: Net | None = None, *others: pl.Callback, **settings: Any
) -> Any:
    net = Rewarded() if module is None else module
    run = trainer(callback, *others, max_steps=600, log_every_n_steps=1, **settings)
    run.fit(net, data())
    return run


def test_saturated_run_is_stopped_with_its_reason_and_evidence(tmp_path: Any) -> None:
    callback = SaturationStopping("reward", sinks=[JsonlSink(tmp_path / "log.jsonl")])
    run = fit(callback)
    assert 60 <= run.global_step < 400
    assert callback.stopping_reason is Reason.SATURATED
    assert callback.stopped_step == run.global_step
    assert callback.evidence["probability"] < 0.2
    assert callback.evidence["hours_saved"] > 0.0
    assert callback.evidence["signal_level"] == pytest.approx(1.0)
    assert "chance of more than" in callback.decision.reason
    assert 0.8 < run.callback_metrics["forecast/reward"] < 1.2
    assert callback.warnings == {}
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["decision"]["stop"]
    monitor = callback._watch.monitor  # type: ignore[union-attr]
    assert monitor.forecaster.recent("frac_reward_zero_std", 0.1)[0] == pytest.approx(0.25)  # type: ignore[attr-defined]


def test_rising_run_is_left_alone_until_too_little_is_left() -> None:
    callback = SaturationStopping()
    run = fit(callback, Rising())
    # From there on even a line brings less than a tenth of what it has brought.
    assert run.global_step >= 600 / 1.1
    rule = SaturationRule(min_gain=0.001, confidence=0.9)
    assert fit(SaturationStopping(rule=rule), Rising()).global_step == 600


def test_advice_does_not_stop() -> None:
    callback = SaturationStopping(rule=SaturationRule(stop_on=()))
    assert fit(callback).global_step == 600
    assert callback.stopping_reason is None
    assert Reason.of(callback.decision) in (Reason.SATURATED, Reason.BUDGET_SPENT)


@pytest.mark.parametrize("settings", [{"min_steps": 480}, {"min_epochs": 24}])
def test_min_steps_and_min_epochs_are_obeyed(settings: dict[str, int]) -> None:
    callback = SaturationStopping()
    run = fit(callback, max_epochs=30, **settings)
    assert 480 <= run.global_step < 600
    assert callback.stopping_reason is Reason.SATURATED


def test_best_weights_are_restored(tmp_path: Any) -> None:
    keep = ModelCheckpoint(tmp_path, monitor="reward", mode="max", every_n_train_steps=10, save_top_k=1)
    net, callback = Rewarded(), SaturationStopping(restore_best=True)
    fit(callback, net, keep, enable_checkpointing=True)
    assert callback.stopping_reason is Reason.SATURATED
    best = torch.load(keep.best_model_path, weights_only=False)["state_dict"]
    last = torch.load(keep.best_model_path, weights_only=False)["global_step"]
    assert last < callback.stopped_step  # type: ignore[operator]
    assert all(torch.equal(best[name], value) for name, value in net.state_dict().items())


def test_restoring_without_a_checkpoint_callback_changes_nothing() -> None:
    callback = SaturationStopping(restore_best=True)
    fit(callback)
    assert callback.stopping_reason is Reason.SATURATED
    assert callback.warnings == {}


class Interrupted(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 50:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True

    path = ""


def test_resumed_run_stops_where_the_whole_one_does(tmp_path: Any) -> None:
    whole, first, second = SaturationStopping(), SaturationStopping(), SaturationStopping()
    fit(whole)
    pause = Interrupted()
    pause.path = str(tmp_path / "half.ckpt")
    fit(first, None, pause)
    assert first.stopping_reason is None
    net = Rewarded()
    run = trainer(second, max_steps=600, log_every_n_steps=1)
    run.fit(net, data(), ckpt_path=pause.path, weights_only=False)
    assert second.stopped_step == whole.stopped_step
    same = set(whole.evidence) - {"hours_saved"}  # the clock's
    assert {k: second.evidence[k] for k in same} == {k: whole.evidence[k] for k in same}


def test_rewards_that_are_not_finite_do_not_end_a_training() -> None:
    callback = SaturationStopping()
    assert fit(callback, Broken()).global_step == 600
    assert callback.warnings["reward was not finite and left out"] == 300


def test_fault_inside_does_not_end_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    callback = SaturationStopping()

    def broken(forecaster: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(callback.rule, "decide", broken)
    assert fit(callback).global_step == 600
    assert callback.warnings["SaturationRule failed to decide"] > 50


def test_loss_that_is_returned_is_never_taken_for_a_reward() -> None:
    with pytest.raises(ValueError, match="monitor='reward' is not logged"):
        fit(SaturationStopping(), Silent())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"monitor": ""}, ValueError),
        ({"direction": "up"}, ValueError),
        ({"ceiling": float("inf")}, ValueError),
        ({"horizon": 0}, ValueError),
        ({"rule": "patience"}, TypeError),
    ],
)
def test_wrong_settings_are_refused_at_once(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        SaturationStopping(**options)
