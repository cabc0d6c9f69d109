"""A state that was damaged is refused in words, or harmless: no exception of another kind, no hang."""

import copy
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scale_callbacks import LossForecaster, Monitor, RewardForecaster, Schedule, testing
from tests.strategies import damages
from tests.test_streams import assert_sound

PLAN = Schedule.cosine(1e-3, 200, warmup=10)
LOSSES, REWARDS = testing.losses_of(PLAN).tolist(), testing.rewards_of(200).tolist()


def loss_forecaster():
    return LossForecaster(PLAN)


def reward_forecaster():
    return RewardForecaster(200)


def loss_monitor():
    return Monitor(LossForecaster(PLAN))


def state_of(make, until=60):
    watch, values = make(), REWARDS if make is reward_forecaster else LOSSES
    extra = {"train_loss": 2.0, "step_time": 0.5}
    for step in range(1, until):
        watch.observe(step, values[step - 1], extra=extra)
    return json.loads(json.dumps(watch.state_dict()))


def unsealed_monitor_state():
    state = state_of(loss_monitor)
    del state["seal"]  # what a version that knew none has written
    return state


KINDS = {
    "loss forecaster": (loss_forecaster, state_of(loss_forecaster)),
    "reward forecaster": (reward_forecaster, state_of(reward_forecaster)),
    "monitor": (loss_monitor, state_of(loss_monitor)),
    "monitor without a seal": (loss_monitor, unsealed_monitor_state()),
}


def check(kind, damage):
    make, state = KINDS[kind]
    damaged = damage(copy.deepcopy(state))
    watch = make()
    before = watch.state_dict()
    refused = None
    try:
        watch.load_state_dict(damaged)
    except ValueError as fault:
        refused = str(fault)
    if refused is not None:
        assert "damaged" in refused or "update scale-callbacks" in refused
        assert watch.state_dict() == before
        return
    for step in (61, 62, 63):
        watch.observe(step, 2.0)
    assert_sound(watch.forecast if isinstance(watch, Monitor) else watch.forecast())
    json.dumps(watch.state_dict(), allow_nan=False)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(KINDS)), damages())
def test_a_damaged_state_is_refused_in_words_or_harmless(kind, damage):
    check(kind, damage)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.sampled_from(sorted(KINDS)), damages())
def test_thousands_of_damaged_states_are_refused_in_words_or_harmless(kind, damage):
    check(kind, damage)


@pytest.mark.parametrize("change", [1e-12, -1e-12, 1.0])
def test_no_number_of_a_monitor_s_state_can_be_changed_unnoticed(change):
    state = state_of(loss_monitor)
    rows = state["forecaster"]["curve"]["rows"]
    name = sorted(rows)[len(rows) // 2]
    rows[name][2] += change
    with pytest.raises(ValueError, match="checksum"):
        loss_monitor().load_state_dict(state)


def test_a_store_that_gives_back_floats_for_whole_numbers_and_tuples_for_lists_is_fine():
    def stored(value):
        if isinstance(value, dict):
            return {name: stored(item) for name, item in value.items()}
        if isinstance(value, list):
            return tuple(stored(item) for item in value)
        return float(value) if type(value) is int else value

    state = state_of(loss_monitor)
    monitor = loss_monitor()
    monitor.load_state_dict(stored(state))
    assert monitor.state_dict() == state


@pytest.mark.parametrize(
    "what", [None, [], "state", 3, {}, {"version": 1}, {"version": "2"}, {"version": None}]
)
def test_what_is_no_state_is_refused_in_words(what):
    for make, _ in KINDS.values():
        with pytest.raises(ValueError, match="damaged"):
            make().load_state_dict(what)


def test_a_count_that_would_take_all_memory_is_refused_at_once():
    state = state_of(loss_forecaster)
    state["curve"]["bins"] = 10**15
    with pytest.raises(ValueError, match="bins"):
        loss_forecaster().load_state_dict(state)


def test_bins_that_do_not_hold_what_was_counted_are_refused():
    state = state_of(loss_forecaster)
    row = next(iter(state["curve"]["rows"].values()))
    row[0] += 1
    with pytest.raises(ValueError, match="counted"):
        loss_forecaster().load_state_dict(state)
    assert np.isfinite(row).all()


@pytest.mark.parametrize("factor", [0.5, 1.5, 1e6])
def test_bins_that_lie_elsewhere_than_their_numbers_say_are_refused(factor):
    state = state_of(loss_forecaster)
    state["curve"]["edge"] *= factor
    with pytest.raises(ValueError, match=r"a bin from step"):
        loss_forecaster().load_state_dict(state)


def test_a_last_step_before_the_last_bin_is_refused():
    state = state_of(loss_forecaster)
    state["curve"]["stream"][1] = 1.0
    state["curve"]["ring"] = []
    with pytest.raises(ValueError, match="order"):
        loss_forecaster().load_state_dict(state)


@pytest.mark.parametrize("damage", ["nan", "inf", None, "x"])
def test_an_expectation_that_is_no_number_is_refused(damage):
    state = unsealed_monitor_state()
    state["expected"][-1][3][0] = damage
    with pytest.raises(ValueError, match="damaged"):
        loss_monitor().load_state_dict(state)


def test_an_expectation_with_a_column_cut_short_is_refused():
    state = unsealed_monitor_state()
    del state["expected"][-1][3][-1]
    with pytest.raises(ValueError, match="equally long"):
        loss_monitor().load_state_dict(state)


@pytest.mark.parametrize("make", [loss_forecaster, reward_forecaster])
@pytest.mark.parametrize("column", [2, 3, 4])
def test_a_bin_of_values_that_no_curve_takes_is_refused(make, column):
    state = state_of(make)
    rows = state["curve"]["rows"]
    rows[sorted(rows)[len(rows) // 2]][column] = 1e300
    with pytest.raises(ValueError, match="a bin of values"):
        make().load_state_dict(state)


@pytest.mark.parametrize("damage", [lambda curve: curve["stream"], lambda curve: curve["ring"][-1]])
def test_a_latest_value_that_no_curve_takes_is_refused(damage):
    state = state_of(loss_forecaster)
    damage(state["curve"])[-3 if len(damage(state["curve"])) > 2 else 1] = 1e300
    with pytest.raises(ValueError, match="too large"):
        loss_forecaster().load_state_dict(state)
