"""ForecastStopper, asked as Ray Tune asks it and in a real search; .ci/extras.sh runs it, where Ray is."""

import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_callbacks import Schedule
from scale_callbacks.due import forecast_steps

T = 200


def plan(config: Any) -> Schedule:
    return Schedule.cosine(config["rate"], T, warmup=10)


def curve(rate: float, seed: int = 0) -> np.ndarray:
    """Losses of a run whose rate is best at 3e-3."""
    schedule, steps = plan({"rate": rate}), np.arange(1, T + 1)
    area = schedule.area(steps) / schedule.area(T)
    end = 2.0 + 0.3 * np.log10(rate / 3e-3) ** 2
    losses = end * (0.75 + 0.25 * (area + 0.005) ** -0.3 + 0.08 * schedule.lr(steps) / rate)
    return losses * (1.0 + 0.005 * np.random.default_rng(seed).standard_normal(T))


def test_without_ray_the_way_to_get_it_is_told() -> None:
    code = "import sys; sys.modules['ray'] = None; import scale_callbacks.integrations.ray"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ForecastStopper needs Ray Tune: pip install 'scale-callbacks[sweeps]'" in told.stderr


@pytest.fixture
def stopper_of() -> Any:
    pytest.importorskip("ray")
    from scale_callbacks.integrations.ray import ForecastStopper

    return ForecastStopper


def run(stopper: Any, name: str, rate: float, *, sign: float = 1.0) -> int:
    """Report a trial's values, and its last result twice as Tune does; the step it is ended at."""
    config = {"rate": rate}
    values = sign * curve(rate)
    for step, value in enumerate(values.tolist(), start=1):
        if stopper(name, {"loss": value, "training_iteration": step, "config": config, "done": False}):
            return step
    stopper(name, {"loss": values[-1], "training_iteration": T, "config": config, "done": True})
    return T


@pytest.mark.parametrize(("mode", "sign"), [("min", 1.0), ("max", -1.0)])
def test_a_trial_that_will_not_be_the_best_is_ended_and_the_best_is_not(stopper_of, mode, sign) -> None:
    stopper = stopper_of("loss", schedule=plan, mode=mode)
    ends = [run(stopper, str(i), rate, sign=sign) for i, rate in enumerate((5e-4, 1e-4, 3e-3, 3e-2))]
    assert ends[0] == ends[2] == T
    assert ends[1] in forecast_steps(T)
    assert 20 <= ends[1] < 0.7 * T
    assert ends[3] < T
    assert not stopper.stop_all()


def test_trials_side_by_side_are_told_apart(stopper_of) -> None:
    stopper = stopper_of("loss", schedule=plan)
    run(stopper, "first", 3e-3)
    good, bad = curve(3e-3, 1), curve(1e-4, 1)
    ended = set()
    for i in range(T - 1):
        for name, values, rate in (("good", good, 3e-3), ("bad", bad, 1e-4)):
            result = {"loss": float(values[i]), "training_iteration": i + 1, "config": {"rate": rate}}
            if name not in ended and stopper(name, result):
                ended.add(name)
    assert ended == {"bad"}


def test_nothing_is_ended_before_a_trial_has_completed(stopper_of) -> None:
    stopper = stopper_of("loss", schedule=plan)
    result = {"loss": 9.0, "training_iteration": 50, "config": {"rate": 1e-3}}
    assert stopper.decide("0", result).reason == "not yet: no trial has completed"
    assert stopper.decide("0", {"training_iteration": 51}).reason == "not yet: no loss reported"


def test_a_trial_that_broke_off_sets_no_target(stopper_of) -> None:
    stopper = stopper_of("loss", schedule=plan)
    result = {"loss": 0.1, "training_iteration": 50, "config": {"rate": 1e-3}, "done": True}
    assert not stopper("0", result)
    assert stopper.decide("0", result).reason == "it has ended"
    result = {"loss": 9.0, "training_iteration": 50, "config": {"rate": 1e-3}}
    assert stopper.decide("1", result).reason == "not yet: no trial has completed"


def test_a_fault_is_said_and_ends_no_trial(stopper_of, caplog: pytest.LogCaptureFixture) -> None:
    stopper = stopper_of("loss", schedule=plan)
    with caplog.at_level(logging.WARNING, "scale_callbacks"):
        assert not stopper("0", {"loss": 2.0, "training_iteration": 1, "config": {}})
    assert "trial 0 is not judged: KeyError: 'rate'" in caplog.text


def test_it_goes_where_ray_sends_it(stopper_of) -> None:
    stopper = stopper_of("loss", schedule=plan)
    run(stopper, "0", 3e-3)
    again = pickle.loads(pickle.dumps(stopper))
    assert run(again, "1", 1e-4) == run(stopper, "1", 1e-4) < T


@pytest.mark.parametrize(
    ("arguments", "fault", "message"),
    [
        ({"schedule": 200}, TypeError, "schedule must be a Schedule or make one of a config, not 200"),
        ({"mode": "low"}, ValueError, "mode='low' must be 'min' or 'max'"),
        ({"confidence": 0.2}, ValueError, "confidence=0.2 must lie between 0.5 and 1"),
        ({"earliest": 2.0}, ValueError, "earliest=2.0 must be a share of the plan"),
    ],
)
def test_wrong_settings_are_refused_at_set_up(stopper_of, arguments, fault, message) -> None:
    with pytest.raises(fault, match=message):
        stopper_of("loss", **{"schedule": plan, **arguments})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_real_search_ends_the_trials_that_are_behind(stopper_of, tmp_path: Path) -> None:
    import ray
    from ray import tune

    def trial(config: Any) -> None:
        for value in curve(config["rate"]).tolist():
            tune.report({"loss": value})

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    try:
        search = tune.Tuner(
            trial,
            param_space={"rate": tune.grid_search([3e-3, 1e-4])},
            tune_config=tune.TuneConfig(metric="loss", mode="min", max_concurrent_trials=1),
            run_config=tune.RunConfig(
                stop=stopper_of("loss", schedule=plan), verbose=0, storage_path=str(tmp_path)
            ),
        )
        results = search.fit()
    finally:
        ray.shutdown()
    ends = {result.config["rate"]: result.metrics["training_iteration"] for result in results}
    assert ends[3e-3] == T
    assert ends[1e-4] < T
    assert results.get_best_result().config == {"rate": 3e-3}
