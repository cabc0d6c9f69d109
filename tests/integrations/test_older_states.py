"""States written by version 0.1.0 of this package are gone on from as if nothing had happened."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from scale_callbacks import LossForecast, SaturationRule, SaturationStopping
from scale_callbacks.monitor import Monitor
from tests.integrations.lightning_runs import QUIET, trainer

pytestmark = QUIET

STATES = Path(__file__).parents[1] / "data" / "states"


def made_by() -> Any:
    """The script that wrote the states: it knows the settings of the runs."""
    spec = importlib.util.spec_from_file_location("make_states", STATES / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = made_by()


def saved(name: str) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((STATES / f"{name}_v1.json").read_text())
    return state


def go_on(monitor: Monitor, name: str, stream: list[float], first: int) -> list[Any]:
    """Observe from a step on; return each new forecast and the decision that came with it."""
    told = []
    for step, value in enumerate(stream[first - 1 :], first):
        before = len(monitor.history)
        extra = {"frac_reward_zero_std": 0.25} if name == "reward" else {"train_loss": value + 0.1}
        monitor.observe(step, value, extra=extra)
        if len(monitor.history) > before:
            assert monitor.forecast is not None
            told.append((monitor.history[-1], monitor.forecast.to_dict(), monitor.decision.to_dict()))
    return told


@pytest.mark.parametrize("name", ["loss", "reward"])
def test_monitor_shows_what_it_showed_when_its_state_was_saved(name: str) -> None:
    file = saved(f"{name}_monitor")
    monitor = MAKE.monitors()[name]
    monitor.load_state_dict(file["state"])
    state = file["state"]
    assert monitor.forecast.to_dict() == state["forecast"]
    assert monitor.decision.to_dict() == state["decision"]
    assert [[p.step, p.value, p.low, p.high, p.status] for p in monitor.history] == state["history"]
    assert monitor.summary().last_step == file["kept"]
    assert sum(monitor.forecaster.curve.bins().count) == file["kept"]


@pytest.mark.parametrize("name", ["loss", "reward"])
def test_monitor_goes_on_as_if_it_had_seen_the_whole_run(name: str) -> None:
    file = saved(f"{name}_monitor")
    resumed, whole = MAKE.monitors()[name], MAKE.monitors()[name]
    resumed.load_state_dict(file["state"])
    go_on(whole, name, file["stream"][: file["kept"]], 1)
    expected = go_on(whole, name, file["stream"], file["kept"] + 1)
    assert len(expected) > 20
    assert go_on(resumed, name, file["stream"], file["kept"] + 1) == expected


@pytest.mark.parametrize("name", ["loss", "reward"])
def test_state_is_written_again_as_one_of_today(name: str) -> None:
    today = MAKE.monitors()[name]
    today.load_state_dict(saved(f"{name}_monitor")["state"])
    again = MAKE.monitors()[name]
    again.load_state_dict(json.loads(json.dumps(today.state_dict())))
    assert again.state_dict() == today.state_dict()
    assert again.state_dict()["version"] == MAKE.monitors()[name].state_dict()["version"]


def test_state_of_a_newer_version_is_refused_with_the_remedy() -> None:
    state = saved("loss_monitor")["state"] | {"version": 99}
    with pytest.raises(ValueError, match=r"version 99.*update scale-callbacks"):
        MAKE.monitors()["loss"].load_state_dict(state)


def callbacks() -> dict[str, Any]:
    return {
        "loss_forecast": LossForecast(horizon=MAKE.HORIZON),
        "saturation_stopping": SaturationStopping(horizon=MAKE.HORIZON, rule=SaturationRule(stop_on=())),
    }


def fit(callback: Any, key: str, stream: list[float], steps: int, resume: Path | None = None) -> pl.Trainer:
    loop = trainer(callback, max_steps=steps)
    data = DataLoader(TensorDataset(torch.ones(MAKE.HORIZON, 1)))
    loop.fit(MAKE.Played(key, stream), data, ckpt_path=resume)
    return loop


@pytest.mark.parametrize(
    ("name", "key"), [("loss_forecast", "train_loss"), ("saturation_stopping", "reward")]
)
def test_lightning_goes_on_from_an_older_checkpoint(name: str, key: str, tmp_path: Path) -> None:
    file = saved(name)
    whole, start, resumed = (callbacks()[name] for _ in range(3))
    fit(whole, key, file["stream"], MAKE.HORIZON)
    fit(start, key, file["stream"], file["kept"]).save_checkpoint(tmp_path / "new.ckpt")
    checkpoint = torch.load(tmp_path / "new.ckpt", weights_only=False)
    assert file["state"]["key"] in checkpoint["callbacks"]
    checkpoint["callbacks"][file["state"]["key"]] = file["state"]["state"]
    torch.save(checkpoint, tmp_path / "old.ckpt")

    fit(resumed, key, file["stream"], MAKE.HORIZON, tmp_path / "old.ckpt")
    assert not resumed.warnings
    then = [point for point in resumed._watch.monitor.history if point.step > file["kept"]]
    assert len(then) > 20
    assert then == [point for point in whole._watch.monitor.history if point.step > file["kept"]]
    before = [point.step for point in resumed._watch.monitor.history if point.step <= file["kept"]]
    assert before == [row[0] for row in file["state"]["state"]["monitor"]["history"]]
    if name == "saturation_stopping":
        assert resumed.decision.reason == whole.decision.reason


def test_checkpoint_of_a_newer_version_is_reported_and_the_run_watched_from_there(
    tmp_path: Path, caplog: Any
) -> None:
    stream = saved("loss_forecast")["stream"]
    fit(callbacks()["loss_forecast"], "train_loss", stream, 40).save_checkpoint(tmp_path / "new.ckpt")
    checkpoint = torch.load(tmp_path / "new.ckpt", weights_only=True)  # plain data: nothing is unpickled
    for state in checkpoint["callbacks"].values():
        state["version"] = 99
    torch.save(checkpoint, tmp_path / "newer.ckpt")
    callback = callbacks()["loss_forecast"]
    fit(callback, "train_loss", stream, 60, tmp_path / "newer.ckpt")
    assert "its version is 99: update scale-callbacks" in caplog.text
    assert callback._watch.monitor.forecaster.curve.n == 20
