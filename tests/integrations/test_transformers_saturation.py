import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from scale_callbacks import JsonlSink, MemorySink, SaturationRule
from scale_callbacks.integrations.transformers import SaturationStoppingCallback
from scale_callbacks.saturation import Reason
from tests.integrations.hf_runs import QUIET, Rewarded, Stream, trainer

pytestmark = QUIET
ROOT = Path(__file__).parents[2]


class Rising(Rewarded):
    def metrics(self, step: int) -> dict[str, Any]:
        return {"reward": super().metrics(step)["reward"] + step / 50}


def fit(folder: Path, callback: Any, *others: TrainerCallback, **settings: Any) -> Any:
    run = trainer(folder, callback, *others, **{"kind": Rewarded, "max_steps": 300, **settings})
    run.train()
    return run


def rows(run: Any, name: str) -> list[dict[str, Any]]:
    return [row for row in run.state.log_history if name in row]


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def test_saturated_run_is_stopped_with_its_reason_in_the_log_history(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = SaturationStoppingCallback(sinks=[JsonlSink(tmp_path / "log.jsonl")])
    run = fit(tmp_path, callback)
    assert 30 <= run.state.global_step < 200
    assert callback.stopping_reason is Reason.SATURATED
    assert callback.stopped_step == run.state.global_step
    assert callback.evidence["probability"] < 0.2
    (row,) = rows(run, "stop_reason")
    assert row["step"] == callback.stopped_step
    assert row["stop_monitor"] == "reward"
    assert row["stop_reason"] == callback.decision.reason
    assert "chance of more than" in row["stop_reason"]
    assert row["stop_reason"] in caplog.text
    assert callback.warnings == {}
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["decision"]["stop"]
    forecaster: Any = callback._watch.monitor.forecaster  # type: ignore[union-attr]
    assert forecaster.recent("frac_reward_zero_std", 0.1)[0] == pytest.approx(0.25)
    assert forecaster.recent("step_time", 1.0)[0] > 0.0


@pytest.mark.slow
def test_rising_run_is_left_alone_until_too_little_is_left(tmp_path: Path) -> None:
    run = fit(tmp_path, SaturationStoppingCallback(), kind=Rising)
    assert run.state.global_step >= 285 / 1.1  # the middle of the last tenth is what is forecast
    rule = SaturationRule(min_gain=0.001, confidence=0.9)
    run = fit(tmp_path, callback := SaturationStoppingCallback(rule=rule), kind=Rising)
    assert run.state.global_step == 300
    assert callback.stopping_reason is None
    assert not rows(run, "stop_reason")


@pytest.mark.slow
def test_advice_does_not_stop(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback(rule=SaturationRule(stop_on=()))
    assert fit(tmp_path, callback).state.global_step == 300
    assert callback.stopping_reason is None
    assert Reason.of(callback.decision) in (Reason.SATURATED, Reason.BUDGET_SPENT)


@pytest.mark.parametrize("strategy", ["steps", pytest.param("epoch", marks=pytest.mark.slow), "best"])
def test_checkpoint_is_saved_at_the_stop(tmp_path: Path, strategy: str) -> None:
    settings: dict[str, Any] = {"save_strategy": strategy, "save_steps": 500, "save_total_limit": 2}
    if strategy == "best":
        settings |= {"eval_strategy": "steps", "eval_steps": 50, "metric_for_best_model": "loss"}
    callback = SaturationStoppingCallback()
    fit(tmp_path, callback, **settings)
    assert callback.stopped_step == saved(tmp_path)[-1]
    folder = tmp_path / f"checkpoint-{callback.stopped_step}"
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert any("stop_reason" in row for row in history)
    assert (folder / "scale_callbacks.SaturationStoppingCallback.reward.json").is_file()


@pytest.mark.slow
def test_nothing_is_saved_where_nothing_is_to_be(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback()
    fit(tmp_path, callback)
    assert callback.stopping_reason is Reason.SATURATED
    assert saved(tmp_path) == []


def test_last_weights_are_evaluated_and_the_best_loaded(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback()
    run = fit(
        tmp_path,
        callback,
        eval_strategy="steps",
        eval_steps=25,
        save_strategy="steps",
        save_steps=25,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    stopped = callback.stopped_step
    assert stopped is not None
    assert stopped % 25
    evaluated = {row["step"]: row["eval_loss"] for row in rows(run, "eval_loss")}
    assert list(evaluated)[-1] == stopped
    best = min(evaluated, key=lambda step: evaluated[step])
    assert run.state.best_global_step == best
    weights = torch.load(tmp_path / f"checkpoint-{best}" / "optimizer.pt", weights_only=False)
    assert weights is not None
    assert run.evaluate()["eval_loss"] == pytest.approx(evaluated[best])


def test_stop_asked_for_by_an_evaluation_is_a_stop_there(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback("eval_reward")
    run = fit(tmp_path, callback, eval_strategy="steps", eval_steps=5, save_strategy="steps", save_steps=500)
    assert callback.stopping_reason is Reason.SATURATED
    assert callback.stopped_step == run.state.global_step < 300
    assert callback.stopped_step % 5 == 0  # type: ignore[operator]
    assert saved(tmp_path) == [callback.stopped_step]
    assert [row["step"] for row in rows(run, "eval_loss")].count(callback.stopped_step) == 1
    forecaster: Any = callback._watch.monitor.forecaster  # type: ignore[union-attr]
    assert forecaster.recent("frac_reward_zero_std", 0.1)[0] == pytest.approx(0.25)


@pytest.mark.slow
def test_stop_asked_for_at_an_epochs_end_is_a_stop_there(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback("eval_reward")
    run = fit(tmp_path, callback, eval_strategy="epoch", save_strategy="epoch", save_total_limit=1)
    assert callback.stopped_step == run.state.global_step < 300
    assert callback.stopped_step % 20 == 0  # type: ignore[operator]
    assert saved(tmp_path) == [callback.stopped_step]


@pytest.mark.slow
def test_data_without_a_length_are_stopped_too(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback()
    run = fit(tmp_path, callback, data=Stream())
    assert callback.stopping_reason is Reason.SATURATED
    assert run.state.global_step < 300


def test_resumed_run_stops_where_the_whole_one_does(tmp_path: Path) -> None:
    whole, resumed = SaturationStoppingCallback(), SaturationStoppingCallback()
    fit(tmp_path, whole, save_strategy="steps", save_steps=50)
    run = trainer(tmp_path, resumed, kind=Rewarded, max_steps=300)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-50"))
    assert resumed.stopped_step == whole.stopped_step
    a, b = resumed._watch, whole._watch
    assert a is not None
    assert b is not None
    assert a.monitor.history == b.monitor.history
    assert resumed.forecast == whole.forecast is not None
    untimed = ("hours_saved",)
    assert {k: v for k, v in resumed.evidence.items() if k not in untimed} == {
        k: v for k, v in whole.evidence.items() if k not in untimed
    }


@pytest.mark.slow
def test_run_that_was_stopped_can_be_taken_on(tmp_path: Path) -> None:
    first = SaturationStoppingCallback()
    fit(tmp_path, first, save_strategy="steps", save_steps=500)
    again = SaturationStoppingCallback(rule=SaturationRule(stop_on=()))
    run = trainer(tmp_path, again, kind=Rewarded, max_steps=300)
    run.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{first.stopped_step}"))
    assert run.state.global_step == 300
    assert again.stopping_reason is None


@pytest.mark.slow
def test_several_fits_with_one_callback_stop_alike(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback()
    steps = [fit(tmp_path, callback).state.global_step for _ in range(2)]
    assert steps[0] == steps[1] == callback.stopped_step
    run = fit(tmp_path, callback, max_steps=5)
    assert run.state.global_step == 5
    assert callback.stopping_reason is None
    assert callback.stopped_step is None


def test_evaluation_before_training_decides_nothing(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback("eval_reward")
    run = trainer(tmp_path, callback, kind=Rewarded, max_steps=5)
    for _ in range(20):
        run.evaluate()
    assert callback.decision.stop is False
    assert callback.forecast is None


@pytest.mark.slow
def test_values_may_be_tensors(tmp_path: Path) -> None:
    class Tensors(Rewarded):
        def metrics(self, step: int) -> dict[str, Any]:
            return {name: torch.tensor(value) for name, value in super().metrics(step).items()}

    callback, plain = SaturationStoppingCallback(), SaturationStoppingCallback()
    assert fit(tmp_path, callback, kind=Tensors).state.global_step == fit(tmp_path, plain).state.global_step
    assert callback.warnings == {}


@pytest.mark.slow
def test_falling_score_is_stopped_when_it_is_to_fall(tmp_path: Path) -> None:
    class Falling(Rewarded):
        def metrics(self, step: int) -> dict[str, Any]:
            return {"score": -super().metrics(step)["reward"]}

    down = SaturationStoppingCallback("score", direction="min")
    fit(tmp_path, down, kind=Falling)
    assert down.stopping_reason is Reason.SATURATED
    up = SaturationStoppingCallback("score")  # to this one it has collapsed
    fit(tmp_path, up, kind=Falling, max_steps=100)
    assert up.stopping_reason is not Reason.SATURATED


def test_first_of_two_callbacks_that_wants_to_stop_is_heard(tmp_path: Path) -> None:
    first = SaturationStoppingCallback()
    other = SaturationStoppingCallback(rule=SaturationRule(stop_on=()))
    run = fit(tmp_path, other, first, save_strategy="steps", save_steps=1000)
    assert first.stopped_step == run.state.global_step < 300
    assert other.stopping_reason is None
    names = sorted(path.name for path in (tmp_path / f"checkpoint-{first.stopped_step}").glob("scale_*"))
    kind = "scale_callbacks.SaturationStoppingCallback.reward"
    assert names == [f"{kind}.2.json", f"{kind}.json"]


class Fails:
    def write(self, record: Any, summary: Any) -> None:
        raise OSError("disk full")

    def close(self, summary: Any) -> None:
        raise OSError("disk full")


def test_faults_do_not_end_the_training_nor_keep_it_from_stopping(tmp_path: Path) -> None:
    callback = SaturationStoppingCallback(sinks=[Fails()])
    run = fit(tmp_path, callback)
    assert run.state.global_step == callback.stopped_step < 300  # type: ignore[operator]
    assert callback.warnings["Fails failed to write"] > 1


@pytest.mark.slow
def test_rule_that_fails_lets_the_training_go_on(tmp_path: Path) -> None:
    class Broken(SaturationRule):
        def decide(self, forecaster: Any) -> Any:
            raise RuntimeError("boom")

    callback = SaturationStoppingCallback(rule=Broken())
    assert fit(tmp_path, callback, max_steps=100).state.global_step == 100
    assert callback.warnings["Broken failed to decide"] > 1


def test_rewards_that_are_none_or_missing_are_passed_over(tmp_path: Path) -> None:
    class Patchy(Rewarded):
        def metrics(self, step: int) -> dict[str, Any]:
            if step % 3 == 0:
                return {}
            row = super().metrics(step)
            odd = {"reward": None if step % 2 else "n/a", "frac_reward_zero_std": None, "kl": "n/a"}
            return row | odd if step % 3 == 1 else row

    callback = SaturationStoppingCallback(sinks=[sink := MemorySink()])
    run = fit(tmp_path, callback, kind=Patchy)
    assert callback.warnings == {"reward was no number and left out": -(-run.state.global_step // 3)}
    assert sink.records[-1].forecast is not None
    assert callback.stopping_reason is Reason.SATURATED


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"monitor": ""}, ValueError),
        ({"horizon": 0}, ValueError),
        ({"direction": "up"}, ValueError),
        ({"ceiling": float("nan")}, ValueError),
        ({"rule": "patience"}, TypeError),
        ({"sinks": [None]}, TypeError),
    ],
)
def test_bad_settings_are_refused_at_once(settings: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        SaturationStoppingCallback(**settings)


@pytest.mark.slow
def test_two_processes_stop_at_one_step(tmp_path: Path) -> None:
    """Also where the metric, the rule or the whole callback has failed on one of them."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "tests.integrations.hf_ddp", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first.keys() == second.keys() >= {"sound", "deaf", "lame"}
    for case in first.keys() - {"lame"}:
        assert first[case]["step"] == second[case]["step"] == first["sound"]["step"] < 300
        assert first[case]["reason"] == second[case]["reason"] == "saturated"
    assert first["lame"]["step"] == second["lame"]["step"] == 300  # process 0 decides, and it is off
    assert first["sound"]["saved"] == [first["sound"]["step"]]
    assert first.get("resumed", first["sound"])["history"] == first["sound"]["history"]
