"""The plan of a run whose plan has changed."""

import json

import numpy as np
import pytest

from scale_callbacks import Schedule
from scale_callbacks.integrations._plan import continued, same_from, saved_plan, told


def test_plan_that_has_not_changed_stays_the_same_object() -> None:
    past, again = Schedule.cosine(1e-3, 1000, warmup=10), Schedule.cosine(1e-3, 1000, warmup=10)
    assert continued(past, again, 400) is past


def test_past_stays_as_it_was_trained_and_the_rest_is_new() -> None:
    past, plan = Schedule.cosine(1e-3, 1000), Schedule.cosine(2e-3, 3000)
    joined = continued(past, plan, 400)
    before, after = np.arange(1, 401), np.arange(401, 3001)
    assert joined.horizon == 3000
    np.testing.assert_allclose(joined.lr(before), past.lr(before), rtol=1e-9)
    np.testing.assert_allclose(joined.lr(after), plan.lr(after), rtol=1e-9)
    assert joined.area(400) == pytest.approx(past.area(400))


def test_change_of_the_past_alone_is_no_change() -> None:
    past = Schedule.multi_step(1e-3, 1000, milestones=[300])
    recomputed = Schedule.constant(1e-4, 1000)  # of one that cannot be wound back
    assert same_from(past, recomputed, 300)
    assert continued(past, recomputed, 300) is past


@pytest.mark.parametrize("step", [0, 1000, 2000])
def test_before_the_first_and_after_the_last_step_the_new_plan_is_all_there_is(step: int) -> None:
    plan = Schedule.constant(1e-4, 1000)
    assert continued(Schedule.constant(1e-3, 5000), plan, step) is plan


def test_run_that_goes_on_past_its_first_end_holds_its_last_rate_in_between() -> None:
    joined = continued(Schedule.linear(1.0, 100), Schedule.constant(0.5, 300), 150)
    assert joined.lr([100, 150, 151]).tolist() == pytest.approx([0.0, 0.0, 0.5], abs=1e-9)


def test_changes_are_told() -> None:
    assert "ends at step 2,000 instead of 1,000" in told(
        Schedule.constant(1, 1000), Schedule.constant(1, 2000)
    )
    assert "learning rate" in told(Schedule.constant(1, 1000), Schedule.constant(2, 1000))


@pytest.mark.parametrize("state", [None, {}, {"plan": None}, {"plan": {"steps": [1]}}, {"plan": "nonsense"}])
def test_state_without_a_plan_has_none(state: dict[str, object] | None) -> None:
    assert saved_plan(state) is None


def test_plan_goes_through_a_state_to_the_last_bit() -> None:
    plan = Schedule.cosine(3e-4, 777, warmup=13)
    assert saved_plan(json.loads(json.dumps({"plan": plan.to_dict()}))) == plan
