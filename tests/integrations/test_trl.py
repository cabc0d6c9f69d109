from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from scale_callbacks import SaturationRule
from scale_callbacks.integrations import trl
from scale_callbacks.integrations.transformers import LossForecastCallback, SaturationStoppingCallback
from scale_callbacks.saturation import Reason
from tests.integrations import trl_runs
from tests.integrations.hf_runs import QUIET

pytestmark = [
    *QUIET,
    pytest.mark.usefixtures("few_forecasts"),
    # what TRL and Transformers say of each other and of tiny trainings
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6"),
    pytest.mark.filterwarnings("ignore::FutureWarning:trl"),
    pytest.mark.filterwarnings("ignore::UserWarning:trl"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def rows(run: Any, name: str) -> list[dict[str, Any]]:
    return [row for row in run.state.log_history if row.get(name) is not None]


def forecaster(callback: Any) -> Any:
    return callback._watch.monitor.forecaster


def test_grpo_trainer_takes_the_callback_as_it_is(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback()
    run = trl_runs.grpo(tmp_path, callback)
    run.train()
    seen = forecaster(callback)
    assert seen.curve.n == len(rows(run, "reward")) == 12
    mean = sum(row["reward"] for row in rows(run, "reward")) / 12
    assert seen.curve.bins().mean @ seen.curve.bins().count / 12 == pytest.approx(mean)
    assert {"reward_std", "frac_reward_zero_std", "clipped_ratio", "step_time"} <= set(seen.extra)
    zero = [row["frac_reward_zero_std"] for row in rows(run, "frac_reward_zero_std")]
    assert seen.recent("frac_reward_zero_std", 1.0)[0] == pytest.approx(sum(zero) / 12)
    assert callback.forecast is not None
    assert 0.0 <= callback.decision.evidence["signal_level"] <= 1.0  # the spread, and the trainer's own plan
    assert callback.warnings == {}


def test_completions_used_for_several_steps_leave_rows_without_reward(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback()
    run = trl_runs.grpo(tmp_path, callback, num_iterations=2, max_steps=8)
    run.train()
    assert len(rows(run, "loss")) == 8
    assert [row["step"] for row in rows(run, "reward")] == [1, 3, 5, 7]
    assert forecaster(callback).curve.bins().steps.tolist() == [1, 3, 5, 7]
    assert callback.warnings == {}


def test_mean_over_several_steps_lies_in_their_middle_and_the_rest_is_not_lost(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback()
    run = trl_runs.grpo(tmp_path, callback, logging_steps=3, max_steps=8)
    run.train()
    # The last row, logged after the end, repeats no step here: it holds what steps 7 and 8 have brought.
    assert [row["step"] for row in rows(run, "reward")] == [3, 6, 8]
    assert forecaster(callback).curve.bins().steps.tolist() == [2.0, 5.0, 7.5]


@pytest.mark.parametrize("name", ["letters", pytest.param("rewards/letters/mean", marks=pytest.mark.slow)])
def test_one_of_several_reward_functions_can_be_watched(tmp_path: Path, name: str) -> None:
    callback = SaturationStoppingCallback(name)
    run = trl_runs.grpo(tmp_path, callback, rewards=[trl_runs.letters, trl_runs.sometimes], max_steps=4)
    run.train()
    logged = [row["rewards/letters/mean"] for row in rows(run, "rewards/letters/mean")]
    assert forecaster(callback).curve.n == 4
    assert forecaster(callback).curve.last_value == logged[-1]
    spread = [row["rewards/letters/std"] for row in rows(run, "rewards/letters/std")]
    assert forecaster(callback).recent("reward_std", 1.0)[0] == pytest.approx(sum(spread) / 4)


@pytest.mark.slow
def test_reward_that_never_applies_is_left_out_and_counted(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback("sometimes")
    trl_runs.grpo(tmp_path, callback, rewards=[trl_runs.letters, trl_runs.sometimes], max_steps=4).train()
    assert sum(callback.warnings.values()) == 4  # None today, NaN in older versions
    assert forecaster(callback).curve.n == 0


@pytest.mark.slow
def test_rewards_of_the_evaluations_can_be_watched(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback("eval_reward")
    run = trl_runs.grpo(
        tmp_path, callback, eval_strategy="steps", eval_steps=2, max_steps=4, per_device_eval_batch_size=4
    )
    run.train()
    assert forecaster(callback).curve.bins().steps.tolist() == [2, 4]
    assert forecaster(callback).curve.last_value == rows(run, "eval_reward")[-1]["eval_reward"]
    assert "frac_reward_zero_std" in forecaster(callback).extra


def test_grpo_run_is_stopped_and_saved(tmp_path: Path) -> None:
    class Now(SaturationRule):
        def decide(self, forecaster: Any) -> Any:
            told = super().decide(forecaster)
            enough = (forecaster.curve.last_step or 0) >= 5
            return type(told)(enough, f"{Reason.SATURATED}: told to", told.evidence)

    callback = SaturationStoppingCallback(rule=Now())
    run = trl_runs.grpo(tmp_path, callback, save_strategy="steps", save_steps=100)
    run.train()
    assert run.state.global_step == callback.stopped_step == 5
    assert (tmp_path / "checkpoint-5" / "scale_callbacks.SaturationStoppingCallback.reward.json").is_file()
    assert rows(run, "stop_reason")[0]["stop_reason"] == "saturated: told to"


@pytest.mark.slow
@pytest.mark.skipif(
    int(version("trl").split(".")[0]) < 1, reason="older versions have other trainers under these names"
)
@pytest.mark.parametrize(
    ("make", "metric", "signals"),
    [
        (trl_runs.rloo, "reward", {"reward_std", "frac_reward_zero_std", "clipped_ratio"}),
        (trl_runs.online_dpo, "objective/scores", {"kl", "entropy"}),
    ],
)
def test_rewards_of_other_trainers_are_found(
    tmp_path: Path, make: Any, metric: str, signals: set[str]
) -> None:
    callback = SaturationStoppingCallback()
    run = make(tmp_path, callback, max_steps=4)
    run.train()
    assert forecaster(callback).curve.n == 4
    assert forecaster(callback).curve.last_value == rows(run, metric)[-1][metric]
    assert signals <= set(forecaster(callback).extra)
    assert callback.warnings == {}


@pytest.mark.parametrize("make", [trl_runs.sft, pytest.param(trl_runs.dpo, marks=pytest.mark.slow)])
def test_losses_of_fine_tuning_trainers_are_forecast(tmp_path: Path, make: Any) -> None:
    callback = LossForecastCallback()
    run = make(tmp_path, callback)
    run.train()
    assert forecaster(callback).curve.n == 12
    assert forecaster(callback).steps_per_epoch == 8.0
    assert callback.forecast is not None
    assert callback.warnings == {}


@pytest.mark.slow
def test_packed_data_are_counted_in_optimizer_steps(tmp_path: Path) -> None:
    callback = LossForecastCallback()
    run = trl_runs.sft(tmp_path, callback, packing=True, num_train_epochs=2, max_steps=-1)
    run.train()
    assert forecaster(callback).horizon == run.state.max_steps == run.state.global_step
    assert forecaster(callback).steps_per_epoch == run.state.max_steps / 2


@pytest.mark.slow
def test_preferences_of_dpo_can_be_watched(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback("rewards/margins", rule=SaturationRule(stop_on=()))
    run = trl_runs.dpo(tmp_path, callback)
    run.train()
    assert forecaster(callback).curve.last_value == rows(run, "rewards/margins")[-1]["rewards/margins"]
    assert callback.warnings == {}


@pytest.mark.parametrize(
    ("monitor", "row", "found"),
    [
        ("reward", {"reward": 1.0, "objective/scores": 2.0}, "reward"),
        ("reward", {"objective/scores": 2.0, "objective/kl": 0.1}, "objective/scores"),
        ("eval_reward", {"eval_objective/scores": 2.0}, "eval_objective/scores"),
        ("reward", {"loss": 1.0}, None),
        ("accuracy", {"rewards/accuracy/mean": 1.0}, "rewards/accuracy/mean"),
        ("rewards/accuracy", {"rewards/accuracy/mean": 1.0}, "rewards/accuracy/mean"),
        ("accuracy", {"rewards/accuracy": 1.0}, "rewards/accuracy"),
        ("eval_accuracy", {"rewards/accuracy/mean": 1.0}, None),
        ("eval_accuracy", {"eval_rewards/accuracy/mean": 1.0}, "eval_rewards/accuracy/mean"),
    ],
)
def test_names_are_found_as_the_trainers_have_them(
    monitor: str, row: dict[str, float], found: str | None
) -> None:
    assert trl.metric_name(monitor, row) == found


def test_evidence_is_what_is_there_and_finite() -> None:
    row = {"reward": 1.0, "kl": None, "objective/kl": 0.5, "entropy": float("nan"), "reward_std": 0.25}
    assert trl.evidence(row, "reward") == {"kl": 0.5, "reward_std": 0.25}
    row = {"eval_reward": 1.0, "eval_completions/clipped_ratio": 0.5, "completions/clipped_ratio": 0.1}
    assert trl.evidence(row, "eval_reward") == {"clipped_ratio": 0.5}
