"""ForecastPruner in real Optuna studies."""

import logging
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from scale_callbacks import Schedule
from scale_callbacks.due import forecast_steps
from scale_callbacks.integrations.optuna import ForecastPruner

T = 200
optuna.logging.set_verbosity(optuna.logging.WARNING)


def plan(rate: float, warmup: int = 20) -> Schedule:
    return Schedule.cosine(rate, T, warmup=warmup)


def curve(rate: float, seed: int = 0) -> np.ndarray:
    """Losses of a run whose rate is best at 3e-3: behind at first where it is high, ahead at the end."""
    schedule, steps = plan(rate), np.arange(1, T + 1)
    area = schedule.area(steps) / schedule.area(T)
    end = 2.0 + 0.3 * np.log10(rate / 3e-3) ** 2
    losses = end * (
        0.75 + 0.25 * (area + 0.005) ** -0.3 + 0.08 * (schedule.lr(steps) / rate) * (rate / 3e-3) ** 0.35
    )
    return losses * (1.0 + 0.005 * np.random.default_rng(seed).standard_normal(T))


def final(losses: np.ndarray) -> float:
    return float(losses[-2:].mean())


def searched(pruner: Any, trials: int = 16, *, sign: float = 1.0, zero: bool = False, **settings: Any) -> Any:
    """A search for the rate; `study.user_attrs["steps"]` counts what was run."""
    direction = "minimize" if sign > 0 else "maximize"
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=1), pruner=pruner, direction=direction, **settings
    )
    ran = 0

    def objective(trial: optuna.Trial) -> float:
        nonlocal ran
        values = sign * curve(trial.suggest_float("rate", 1e-4, 3e-2, log=True), trial.number)
        for step, value in enumerate(values.tolist(), start=1):
            ran += 1
            trial.report(value, step - zero)
            if trial.should_prune():
                raise optuna.TrialPruned
        return final(values)

    study.optimize(objective, n_trials=trials)
    study.set_user_attr("steps", ran)
    return study


@cache
def whole(sign: float = 1.0) -> Any:
    return searched(optuna.pruners.NopPruner(), sign=sign)


def pruned(study: Any) -> list[Any]:
    return study.get_trials(states=(TrialState.PRUNED,))


@pytest.mark.parametrize("zero", [False, True])
def test_a_search_finds_the_same_best_trial_in_half_the_steps(zero: bool) -> None:
    quick = searched(ForecastPruner(lambda trial: plan(trial.params["rate"])), zero=zero)
    assert quick.best_params == whole().best_params
    assert quick.best_value == whole().best_value
    assert quick.user_attrs["steps"] < 0.6 * whole().user_attrs["steps"]
    ends = {trial.number: trial.value for trial in whole().trials}
    for trial in pruned(quick):
        assert ends[trial.number] > min(ends[n] for n in range(trial.number))


def test_a_score_is_searched_upwards() -> None:
    quick = searched(ForecastPruner(lambda trial: plan(trial.params["rate"])), sign=-1.0)
    assert quick.best_params == whole(-1.0).best_params
    assert quick.user_attrs["steps"] < 0.7 * whole(-1.0).user_attrs["steps"]


def test_one_schedule_may_serve_all_trials() -> None:
    quick = searched(ForecastPruner(plan(1.0)))
    assert pruned(quick)
    assert quick.best_value < 1.01 * whole().best_value  # rates that are not told promise no deeper end


def test_trials_are_pruned_only_where_a_forecast_is_due_and_not_early() -> None:
    due = forecast_steps(T)
    for trial in pruned(searched(ForecastPruner(plan(1.0), earliest=0.3))):
        assert trial.last_step in due
        assert trial.last_step >= 0.3 * T


def test_a_study_in_a_database_goes_on_where_it_was(tmp_path: Path) -> None:
    store = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "study_name": "rates", "load_if_exists": True}
    first = searched(ForecastPruner(plan(1.0)), 4, **store)
    again = searched(ForecastPruner(plan(1.0)), 8, **store)
    assert len(again.trials) == 12
    assert again.best_value <= first.best_value
    assert pruned(again)


def asked(values: np.ndarray, pruner: ForecastPruner, *, best: np.ndarray | None = None) -> Any:
    """What the pruner says of a trial that has reported values, after one that has completed."""
    study = optuna.create_study(pruner=pruner)
    if best is not None:
        reported = dict(enumerate(best.tolist(), start=1))
        study.add_trial(optuna.create_trial(value=final(best), intermediate_values=reported))
    reported = dict(enumerate(values.tolist(), start=1))
    running = optuna.create_trial(state=TrialState.RUNNING, intermediate_values=reported)
    study.add_trial(running)
    return pruner.decide(study, study.trials[-1])


def test_it_says_why() -> None:
    due = int(forecast_steps(T)[-20])
    good, bad = curve(3e-3), curve(1e-4)
    decision = asked(bad[:due], ForecastPruner(plan(1.0)), best=good)
    assert decision.stop
    assert decision.reason.startswith(f"will not reach {final(good):.4g}: ")
    assert decision.evidence["chance"] < 0.05
    assert not asked(good[:due], ForecastPruner(plan(1.0)), best=bad).stop


@pytest.mark.parametrize(
    ("seen", "best", "reason"),
    [
        (5, curve(3e-3), "not yet: 5 of 8 values reported"),
        (100, None, "not yet: no trial has completed"),
        (101, curve(3e-3), "not yet: no forecast is due"),
        (13, curve(3e-3), "not yet: 6% of the plan seen"),
    ],
)
def test_it_waits_until_there_is_something_to_say(seen: int, best: Any, reason: str) -> None:
    assert asked(curve(1e-4)[:seen], ForecastPruner(plan(1.0)), best=best).reason == reason


def test_values_that_are_not_finite_are_left_out() -> None:
    due = int(forecast_steps(T)[-20])
    values = curve(1e-4)[:due]
    values[::7] = np.nan
    assert asked(values, ForecastPruner(plan(1.0)), best=curve(3e-3)).stop


def test_a_fault_is_said_and_ends_no_study(caplog: pytest.LogCaptureFixture) -> None:
    def broken(trial: Any) -> Schedule:
        raise KeyError("rate")

    with caplog.at_level(logging.WARNING, "scale_callbacks"):
        study = searched(ForecastPruner(broken), 3)
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 3
    assert caplog.text.count("trial 1 is not judged: KeyError: 'rate'") == 1


def test_a_measure_that_goes_the_other_way_than_the_study_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "scale_callbacks"):
        study = searched(ForecastPruner(plan(1.0), measure="score"), 2)
    assert not pruned(study)
    assert "a study that is to minimize a score: see measure=" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "fault", "message"),
    [
        ({"schedule": 400}, TypeError, "schedule must be a Schedule or make one of a trial, not 400"),
        ({"confidence": 2.0}, ValueError, "confidence=2.0 must lie between 0.5 and 1"),
        ({"earliest": -1.0}, ValueError, "earliest=-1.0 must be a share of the plan"),
        ({"measure": "accuracy"}, ValueError, "measure='accuracy' must be 'loss', 'perplexity' or 'score'"),
    ],
)
def test_wrong_settings_are_refused_at_set_up(arguments: Any, fault: Any, message: str) -> None:
    with pytest.raises(fault, match=message):
        ForecastPruner(**{"schedule": plan(1.0), **arguments})


def test_without_optuna_the_way_to_get_it_is_told() -> None:
    code = "import sys; sys.modules['optuna'] = None; import scale_callbacks.integrations.optuna"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ForecastPruner needs Optuna: pip install 'scale-callbacks[sweeps]'" in told.stderr
