"""LoRA: the trainers train adapters alone, and the callbacks see their losses and rewards all the same."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("peft")

import peft

from scale_callbacks.integrations.transformers import LossForecastCallback, SaturationStoppingCallback
from tests.integrations import trl_runs
from tests.integrations.test_trl import forecaster, pytestmark, rows

__all__ = ["pytestmark"]


@pytest.fixture(autouse=True)
def adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is made with an adapter around it."""
    plain = trl_runs.model
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    monkeypatch.setattr(trl_runs, "model", lambda: peft.get_peft_model(plain(), config))


def trained(run: Any) -> set[str]:
    return {name.split(".")[-3] for name, p in run.model.named_parameters() if p.requires_grad}


def test_loss_of_an_adapter_is_forecast_and_a_resumed_run_goes_on_with_it(tmp_path: Path) -> None:
    whole = LossForecastCallback()
    run = trl_runs.sft(tmp_path / "whole", whole)
    run.train()
    assert trained(run) == {"lora_A", "lora_B"}
    assert forecaster(whole).curve.n == 12
    assert forecaster(whole).steps_per_epoch == 8.0
    assert forecaster(whole).curve.last_value == pytest.approx(rows(run, "loss")[-1]["loss"])
    assert whole.warnings == {}

    trl_runs.sft(tmp_path / "parts", LossForecastCallback(), save_strategy="steps", save_steps=6).train()
    resumed = LossForecastCallback()
    trl_runs.sft(tmp_path / "parts", resumed).train(str(tmp_path / "parts" / "checkpoint-6"))
    assert resumed.warnings == {}
    assert resumed.forecast == whole.forecast is not None


def test_reward_of_an_adapter_is_watched(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback()
    run = trl_runs.grpo(tmp_path, callback)
    run.train()
    assert trained(run) == {"lora_A", "lora_B"}
    assert forecaster(callback).curve.n == 12
    assert "reward_std" in forecaster(callback).extra
    assert callback.warnings == {}
