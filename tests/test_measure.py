import logging
from pathlib import Path

import numpy as np
import pytest

from scale_callbacks import DivergenceRule, LossForecaster, MemorySink, Monitor, Schedule
from scale_callbacks.forecast import Forecast, Status
from scale_callbacks.measure import AsLoss, Measure, measure_of
from scale_callbacks.runs import read_runs

RUNS = [run for run in read_runs([Path(__file__).parent / "data" / "curves" / "loss.npz"]) if run.scored]
LONG = [run for run in RUNS if run.name.startswith(("lr-scheduling", "gemstones"))]
T = 2000
STEPS = np.arange(1, T + 1)
PLAN = Schedule.cosine(1e-3, T, warmup=20)


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("train_loss", "loss"),
        ("val/loss_epoch", "loss"),
        ("eval_loss", "loss"),
        ("loss", "loss"),
        ("ce", "loss"),
        ("accuracy_loss", "loss"),
        ("reward", "loss"),
        ("loss/map", "loss"),
        ("top_level_error", "loss"),
        ("stop", "loss"),
        ("access_rate", "loss"),
        ("tacc", "loss"),
        ("val_acc", "score"),
        ("valid/acc1", "score"),
        ("eval_accuracy", "score"),
        ("train.MulticlassAccuracy", "score"),
        ("rewards/accuracies", "score"),
        ("test_f1", "score"),
        ("macro-F1", "score"),
        ("eval_rougeL", "score"),
        ("eval_bleu", "score"),
        ("val_mAP", "score"),
        ("val/iou", "score"),
        ("val_ppl", "perplexity"),
        ("eval_perplexity", "perplexity"),
        ("ppl", "perplexity"),
        ("applied_loss", "loss"),
        ("energy_f", "loss"),
        ("val_mAP50", "score"),
        ("top5", "score"),
    ],
)
def test_a_name_tells_what_is_watched(name: str, measure: str) -> None:
    assert measure_of(name) == measure


def test_another_measure_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"measure='accuracy' must be 'loss', 'perplexity' or 'score'"):
        LossForecaster(PLAN, measure="accuracy")


def losses(seed: int = 0) -> np.ndarray:
    area = PLAN.area(STEPS) / PLAN.area(T)
    shape = 2.0 + 0.6 * (area + 0.005) ** -0.4 + 0.12 * PLAN.lr(STEPS) / PLAN.peak
    return shape * (1.0 + 0.005 * np.random.default_rng(seed).standard_normal(T))


def told(values: np.ndarray, measure: str, until: int = T // 2) -> Forecast:
    forecaster = LossForecaster(PLAN, measure=measure)
    forecaster.observe(STEPS[:until], values[:until])
    forecast = forecaster.forecast()
    assert forecast is not None
    assert (np.array(forecast.path_low) < forecast.path_high).all()
    return forecast


def test_a_perplexity_is_forecast_as_the_exponential_of_its_loss() -> None:
    loss, perplexity = told(losses(), "loss"), told(np.exp(losses()), "perplexity")
    for name in ("value", "low", "high"):
        assert np.log(getattr(perplexity, name)) == pytest.approx(getattr(loss, name), rel=0.02)


def test_a_score_is_forecast_as_its_distance_from_the_best() -> None:
    loss, score = told(0.1 * losses(), "loss"), told(1.0 - 0.1 * losses(), "score")
    percent = told(100.0 - 10.0 * losses(), "score")
    for here, there in ((score.value, loss.value), (score.low, loss.high), (score.high, loss.low)):
        assert 1.0 - here == pytest.approx(there, rel=0.02)  # spikes are pulled in about another level
    assert (percent.low, percent.high) == pytest.approx((100 * score.low, 100 * score.high), rel=1e-9)


def test_a_score_without_bounds_is_forecast_by_its_sign_changed() -> None:
    loss, score = told(losses(), "loss"), told(-losses(), "score")
    for here, there in ((score.value, loss.value), (score.low, loss.high), (score.high, loss.low)):
        assert -here == pytest.approx(there, rel=0.01)


@pytest.mark.parametrize("measure", list(Measure))
def test_a_curve_turned_into_a_loss_and_back_is_itself(measure: Measure) -> None:
    values = np.linspace(0.1, 0.9, 9)
    turn = AsLoss(measure, 1.0)
    assert turn.outward(turn.inward(values)) == pytest.approx(values)


def test_intervals_of_scores_and_perplexities_of_public_runs_hold() -> None:
    held = {"perplexity": [], "score": []}
    for run in LONG:
        for share in (0.2, 0.5, 0.8):
            seen = run.steps <= share * run.schedule.horizon
            for measure, turn in (("perplexity", np.exp), ("score", lambda loss: np.exp(-0.25 * loss))):
                forecaster = LossForecaster(run.schedule, measure=measure)
                forecaster.observe(run.steps[seen], turn(run.losses[seen]))
                forecast = forecaster.forecast()
                assert forecast is not None
                held[measure].append(forecast.low <= turn(run.final) <= forecast.high)
    assert {measure: np.mean(answers) > 0.85 for measure, answers in held.items()} == {
        "perplexity": True,
        "score": True,
    }


def test_a_rising_metric_taken_for_a_loss_is_said_to_be_none(caplog) -> None:
    monitor = Monitor(LossForecaster(PLAN), name="val_quality")
    with caplog.at_level(logging.WARNING, "scale_callbacks"):
        for step, value in zip(STEPS[: T // 2].tolist(), (1.0 - 0.1 * losses()).tolist(), strict=False):
            monitor.observe(step, value)
    assert monitor.forecast is not None
    assert monitor.forecast.status is Status.UNFAMILIAR
    assert monitor.warnings["val_quality moves the wrong way"] > 1
    assert caplog.text.count("a loss falls: log what rises by a name like val_acc") == 1


def test_a_falling_metric_taken_for_a_score_is_said_to_be_none(caplog) -> None:
    monitor = Monitor(LossForecaster(PLAN, measure="score"), name="map_distance")
    with caplog.at_level(logging.WARNING, "scale_callbacks"):
        for step, value in zip(STEPS[: T // 2].tolist(), losses().tolist(), strict=False):
            monitor.observe(step, value)
    assert caplog.text.count("a score rises: log what falls with 'loss' in its name") == 1


@pytest.mark.parametrize("measure", ["loss", "perplexity", "score"])
def test_what_moves_as_it_should_is_not_complained_of(measure: str) -> None:
    values = {"loss": losses(), "perplexity": np.exp(losses()), "score": 1.0 - 0.1 * losses()}[measure]
    monitor = Monitor(LossForecaster(PLAN, measure=measure), name=measure)
    for step, value in zip(STEPS.tolist(), values.tolist(), strict=True):
        monitor.observe(step, value)
    assert not monitor.warnings


def test_no_public_run_is_said_to_move_the_wrong_way() -> None:
    for run in RUNS:
        forecaster, start = LossForecaster(run.schedule, steps_per_epoch=run.steps_per_epoch), 0
        for share in (0.1, 0.3, 0.6, 1.0):
            end = int(np.searchsorted(run.steps, share * run.schedule.horizon, side="right"))
            forecaster.observe(run.steps[start:end], run.losses[start:end])
            start = end
            assert not forecaster.contrary, (run.name, share)


@pytest.mark.parametrize(("measure", "factor"), [("loss", 1.3), ("score", 0.7)])
def test_a_run_is_stopped_where_what_is_watched_gets_worse(measure: str, factor: float) -> None:
    good = losses() if measure == "loss" else 1.0 - 0.1 * losses()
    for change, stops in ((factor, True), (1.0 / factor, False)):
        values = np.where(STEPS > 1200, change * good, good)
        sink = MemorySink()
        rule = DivergenceRule(stop=True)
        monitor = Monitor(LossForecaster(PLAN, measure=measure), rules=[rule], sinks=[sink], name=measure)
        decisions = [
            monitor.observe(s, v).stop
            for s, v in zip(STEPS[:1500].tolist(), values[:1500].tolist(), strict=True)
        ]
        assert any(decisions) is stops
        monitor.close()


def test_a_resumed_score_is_forecast_as_one_that_went_on() -> None:
    values = 1.0 - 0.1 * losses()
    straight, before = LossForecaster(PLAN, measure="score"), LossForecaster(PLAN, measure="score")
    straight.observe(STEPS[:1500], values[:1500])
    before.observe(STEPS[:700], values[:700])
    after = LossForecaster(PLAN, measure="score")
    after.load_state_dict(before.state_dict())
    after.observe(STEPS[700:1500], values[700:1500])
    assert after.forecast() == straight.forecast()
    assert after.settings["measure"] == "score"


def test_an_accuracy_is_judged_beside_its_train_loss_by_itself() -> None:
    values = 1.0 - 0.1 * losses()
    alone, beside = LossForecaster(PLAN, measure="score"), LossForecaster(PLAN, measure="score")
    alone.observe(STEPS[::50][:20], values[::50][:20])
    beside.observe(STEPS[::50][:20], values[::50][:20], extra={"train_loss": losses()[::50][:20]})
    assert alone.forecast() == beside.forecast()
