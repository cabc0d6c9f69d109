import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from scale_callbacks import LossForecaster, Schedule
from scale_callbacks.backtest import Row, replay, replay_all, score, score_all
from scale_callbacks.cli import app
from scale_callbacks.peers import PEERS
from scale_callbacks.runs import Run, read_runs

CURVES = Path(__file__).parent / "data" / "curves"


def public():
    bundles = [CURVES / f"{name}.npz" for name in ("loss", "small", "finetune", "images", "vision")]
    return [run for run in read_runs(bundles) if run.scored]


def made_up(law, horizon=2000):
    schedule = Schedule.wsd(1.0, horizon, warmup=20, cooldown=400)
    steps = np.arange(10, horizon + 1, 10.0)
    losses = law(schedule, steps)
    return Run("source/run", "source", schedule, steps, losses, float(losses[-2:].mean()))


@pytest.mark.parametrize("run", public(), ids=lambda run: run.name)
def test_every_public_run_gets_finite_forecasts_inside_their_intervals(run):
    rows = replay(run, peers=(), over_time=False).rows
    seen = [s for s in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9) if np.sum(run.steps <= s * run.schedule.horizon) >= 8]
    assert [row.share for row in rows] == seen
    for row in rows:
        assert np.isfinite([row.value, row.low, row.high]).all()
        assert 0.0 < row.low < row.value < row.high


def test_intervals_hold_the_ends_of_pictures_read_many_times():
    # A guard against regressions: most of these runs were in view when their kinds were set.
    runs = [run for run in read_runs([CURVES / "images.npz", CURVES / "vision.npz"]) if run.steps_per_epoch]
    assert len(runs) > 30
    rows = [row for run in runs for row in replay(run, peers=(), over_time=False).rows]
    for early in (True, False):
        held = [row.low <= row.final <= row.high for row in rows if (row.share < 0.4) is early]
        assert np.mean(held) > 0.8


def test_a_second_fall_of_the_rate_to_a_tenth_may_bring_as_much_as_the_first():
    # As in image classifiers: each fall to a tenth takes about as large a share of the loss.
    schedule = Schedule.multi_step(0.1, 30_000, milestones=[10_000, 20_000], gamma=0.1)
    steps = np.arange(150.0, 30_001.0, 300.0)
    cost = np.zeros(len(steps))
    for milestone, before, after in ((10_000, 1.0, 0.526), (20_000, 0.526, 0.092)):
        cost += (after - before) * -np.expm1(-np.maximum(steps - milestone, 0.0) / 450.0)
    noise = 0.003 * np.random.default_rng(0).normal(size=len(steps))
    losses = np.exp(1.0 + cost + 0.5 * (steps / 300.0) ** -0.5 + noise)
    forecaster = LossForecaster(schedule, steps_per_epoch=300.0)
    forecaster.observe(steps[:60], losses[:60])  # the second fall is still to come
    forecast = forecaster.forecast()
    assert losses[59] > 1.5 * losses[-1]
    assert forecast.low < losses[-1] < forecast.high


@pytest.mark.slow
def test_language_models_are_forecast_no_worse_than_on_record():
    # A guard against regressions, not a figure to quote: the prior has seen these runs.
    runs = [run for run in read_runs([CURVES / "loss.npz"]) if run.language_model]
    scores = score_all(replay_all(runs, shares=(0.2, 0.5, 0.9), peers=(), over_time=False))["language model"]
    for share, median, tail in (("0.2", 1.0, 3.2), ("0.5", 0.5, 1.9), ("0.9", 0.09, 0.7)):
        assert scores[share]["median"] < median
        assert scores[share]["p90"] < tail


@pytest.mark.parametrize(
    ("peer", "law"),
    [
        ("power law", lambda plan, t: 2.0 + 0.5 * (t / plan.horizon) ** -0.5),
        (
            "annealing law",
            lambda plan, t: (
                2.0
                + 0.4 * (plan.area(t) / plan.area(2000)) ** -0.5
                - 0.1 * plan.annealing_area(t) / plan.annealing_area(2000)
            ),
        ),
        ("multi-power law", lambda plan, t: 2.0 + 0.4 * (plan.area(t) / plan.area(2000)) ** -0.5),
    ],
)
def test_each_peer_finds_the_end_of_a_run_that_follows_its_law(peer, law):
    run = made_up(law)
    seen = run.steps <= 1990
    assert PEERS[peer](run.schedule, run.steps[seen], run.losses[seen]) == pytest.approx(
        run.losses[-1], rel=5e-3
    )


def test_the_last_value_says_the_loss_stays():
    run = made_up(lambda plan, t: np.full(len(t), 3.0))
    assert PEERS["last value"](run.schedule, run.steps[:50], run.losses[:50]) == 3.0


def row(value, low, high, final=2.0, source="a", **peers):
    return Row("r", source, "language model", 0.5, final, value, low, high, 0.9, "ok", peers)


def test_the_score_of_an_interval_rewards_being_right_and_being_narrow():
    right_and_narrow, right_and_wide, wrong_and_narrow = row(2, 1.9, 2.1), row(2, 1, 3), row(3, 2.9, 3.1)
    assert right_and_narrow.crps < right_and_wide.crps < wrong_and_narrow.crps
    # A normal distribution at its centre scores sd * (2 phi(0) - 1 / sqrt(pi)) (Gneiting and Raftery 2007).
    sd = 0.1 / 1.6449
    assert right_and_narrow.crps == pytest.approx(100 * sd * 0.2337 / 2.0, rel=0.02)
    assert row(2.5, 2.5 - 1e-9, 2.5 + 1e-9).crps == pytest.approx(25.0, rel=1e-3)


def test_scores_count_errors_coverage_and_wins():
    rows = [row(2.02, 1.9, 2.1, peer=2.1), row(1.9, 1.85, 1.95, source="b", peer=2.0)]
    scores = score(rows)
    assert scores["n"] == 2
    assert scores["median"] == pytest.approx(3.0)
    assert scores["bias"] == pytest.approx(-2.0)
    assert scores["coverage"] == 0.5
    assert scores["peers"]["peer"]["beaten"] == 0.5
    assert scores["peers"]["peer"]["skill_low"] <= scores["peers"]["peer"]["skill"]


def write_run(folder, name="lab/run", *, header="step,lr,loss"):
    run = made_up(lambda plan, t: 2.0 + 0.5 * (t / 2000) ** -0.5)
    path = folder / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(run.steps, run.schedule.lr(run.steps), run.losses, strict=True)
    path.write_text("\n".join([header, *(f"{a:.0f},{b:.9g},{c:.9g}" for a, b, c in rows)]) + "\n")
    return path


def test_runs_are_read_from_an_index_a_folder_and_a_file_alike(tmp_path):
    path = write_run(tmp_path)
    (single,) = read_runs([path])
    (found,) = read_runs([tmp_path])
    (tmp_path / "runs.jsonl").write_text(json.dumps({"run": "lab/run", "flags": ["diverged"], "final": 2.5}))
    (indexed,) = read_runs([tmp_path])
    assert single.losses.tolist() == found.losses.tolist() == indexed.losses.tolist()
    assert found.source == indexed.source == "lab"
    assert single.final == pytest.approx(2.5, rel=1e-2)
    assert not indexed.scored


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("step,loss\n1,2\n", "column lr"),
        ("step,lr,loss\n1,abc,2\n", "row 2"),
        ("step,lr,loss\n1,1,\n", "no finite"),
    ],
)
def test_files_that_are_no_runs_are_refused_by_name(tmp_path, content, named):
    path = tmp_path / "broken.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"broken.*{named}"):
        read_runs([path])
    result = CliRunner().invoke(app, ["backtest", str(path)])
    assert result.exit_code == 2
    assert "broken" in result.output


def test_the_command_line_prints_scores_and_leaves_json_and_pictures(tmp_path):
    write_run(tmp_path / "runs", "a/one")
    write_run(tmp_path / "runs", "b/two")
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["backtest", str(tmp_path / "runs"), "--out", str(out), "--workers", "2"]
    )
    assert result.exit_code == 0, result.output
    saved = json.loads((out / "backtest.json").read_text())
    assert saved["scores"]["language model"]["0.5"]["n"] == 2
    assert set(saved["scores"]["language model"]["0.5"]["peers"]) == set(PEERS)
    assert (out / "forecasts_1.png").read_bytes().startswith(b"\x89PNG")
    printed = result.output
    for peer, row in saved["scores"]["language model"]["0.5"]["peers"].items():  # whole, on 80 columns too
        assert f"{row['median']:.2f} / {row['p90']:.2f}" in printed
        assert peer in printed
    assert "…" not in printed
