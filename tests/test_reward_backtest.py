import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from scale_callbacks import SaturationRule
from scale_callbacks.cli import app
from scale_callbacks.reward_backtest import (
    TODAY,
    coverage,
    hindsight,
    judge,
    patience,
    plateau,
    replay,
    score,
    share_of_run,
    stop_live,
)
from scale_callbacks.reward_runs import RewardRun, as_run, cut_short, read_reward_runs
from scale_callbacks.simulate import LENGTH, MIX, kind_of, simulate

CURVES = Path(__file__).parent / "data" / "curves" / "reward.npz"
X = np.arange(1.0, 201.0)


def run(rewards, kind="yes", truth=None):
    return RewardRun("source/run", "source", kind, X, np.asarray(rewards, dtype=float), truth=truth)


RISING, SETTLED = X / 200, 1 - np.exp(-X / 10)
FALLING = np.where(X < 100, 1.0, 0.2) * SETTLED


@pytest.mark.parametrize(
    ("rewards", "at", "harmed", "rescued"),
    [
        (RISING, 100, True, False),
        (RISING, 199, False, False),  # not stopped
        (SETTLED, 100, False, False),
        (SETTLED, 3, True, False),
        (FALLING, 60, False, True),
        (FALLING, 150, False, False),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_outcomes(rewards, at, harmed, rescued, known):
    outcome = judge(run(rewards, truth=rewards if known else None), at)
    assert (outcome.harmed, outcome.rescued) == (harmed, rescued)
    assert outcome.saved == pytest.approx(1 - at / 199)
    assert outcome.stopped == (at < 199)


def test_loss_within_two_standard_errors_is_no_harm():
    noise = np.random.default_rng(0).normal(0, 3.0, 200)
    assert not judge(run(0.3 * RISING + noise), 100).harmed
    assert judge(run(0.3 * RISING + noise, truth=0.3 * RISING), 100).harmed


def test_rules_in_use_today():
    assert patience(3)(run([0, 1, *[0] * 198])) == 4
    assert patience(50)(run(RISING)) == 199
    assert plateau(run([0, 1, 0, 1, 0.5, 0.5, 0.5, 0.5, *[0] * 192])) == 7
    assert share_of_run(run(RISING)) == pytest.approx(160, abs=1)
    assert hindsight(run(RISING, truth=RISING)) == pytest.approx(169, abs=3)
    assert set(TODAY) >= {"patience 3", "patience 20", "patience 50", "hindsight"}


def test_simulated_curves_are_those_of_their_seed_and_in_the_mix():
    curves, again = simulate(300), simulate(300)
    assert all((a.rewards == b.rewards).all() for a, b in zip(curves, again, strict=True))
    assert not np.array_equal(simulate(1, seed=1)[0].rewards, curves[0].rewards)
    assert sum(MIX.values()) == pytest.approx(1.0)
    for law, share in MIX.items():
        assert np.mean([c.law == law for c in curves]) == pytest.approx(share, abs=0.07)
    lengths = [len(c.steps) for c in curves]
    assert LENGTH[0] <= min(lengths) < 100
    assert 3000 < max(lengths) <= LENGTH[1]
    assert {c.kind for c in curves if c.law in ("linear", "flat")} == {"no"}
    assert {c.kind for c in curves if c.law == "collapse"} == {"collapses"}


def test_kinds_are_read_off_the_truth():
    assert [kind_of(c) for c in (RISING, SETTLED, FALLING, 0 * X)] == ["no", "yes", "collapses", "no"]


@pytest.fixture(scope="module")
def short():
    return [as_run(c) for c in simulate(60, seed=3) if len(c.steps) < 400]


def test_rule_harms_few_and_saves_much_on_simulated_runs(short):
    scores = score(replay(short, SaturationRule()))
    ours, impatient = scores["SaturationRule"], scores["patience 20"]
    assert ours["yes"]["saved"]["mean"] > 0.2
    assert ours["yes"]["harmed"]["mean"] < 0.15 < impatient["yes"]["harmed"]["mean"]
    assert ours["no"]["harmed"]["mean"] < impatient["no"]["harmed"]["mean"]
    assert scores["hindsight"]["stops"]["harmed"]["mean"] == 0.0
    interval = ours["yes"]["saved"]
    assert interval["low"] <= interval["mean"] <= interval["high"]


def test_rule_that_never_stops_harms_nobody_and_saves_nothing(short):
    (by_kind,) = score(replay(short[:3], SaturationRule(stop_on=()), today=False)).values()
    assert by_kind["stops"] == {"runs": 0}
    assert all(
        row["saved"]["mean"] == row["harmed"]["mean"] == 0.0 for k, row in by_kind.items() if k != "stops"
    )


def test_stop_does_not_see_what_comes_after():
    rewards = SETTLED + np.random.default_rng(1).normal(0, 0.1, 200)
    at, reason = stop_live(run(rewards), SaturationRule())
    assert reason == "saturated"
    changed = np.where(np.arange(200) > at, 9.0, rewards)
    assert stop_live(run(changed), SaturationRule()) == (at, reason)


def test_public_runs_are_read_and_none_is_harmed():
    runs = read_reward_runs(CURVES)
    assert {r.licence for r in runs} <= {"MIT", "Apache-2.0"}
    assert "entropy" in runs[1].extra
    stops = replay(runs, SaturationRule(), today=False)
    assert not any(stop.outcome.harmed for stop in stops)
    assert {stop.run: stop.outcome.rescued for stop in stops if stop.kind == "collapses"} == {
        "rasbt-reasoning/rlvr_grpo_original_no_kl_3fb930": True
    }
    told = coverage(runs)
    assert told["0.7"]["runs"] == len(runs)


def test_cut_runs_end_where_they_were_cut():
    cuts = cut_short([run(SETTLED)])
    assert [r.steps[-1] for r in cuts] == [70, 100, 140]
    assert [r.kind for r in cuts] == ["cut"] * 3


def folder(tmp_path, header="step,reward,lr,reward_std"):
    rows = [f"{t:g},{'' if t == 7 else r},{1 - t / 201},0.1" for t, r in zip(X, SETTLED, strict=True)]
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "a.csv").write_text("\n".join([header, *rows]))
    (tmp_path / "runs.jsonl").write_text(json.dumps({"run": "lab/a", "saturates": "yes"}) + "\n")
    return tmp_path


def test_folder_of_csv_files_is_read_with_its_rates_and_signals(tmp_path):
    (read,) = read_reward_runs(folder(tmp_path))
    assert (read.source, read.kind, len(read.steps)) == ("lab", "yes", 199)
    assert read.schedule().horizon == read.horizon == 200
    assert list(read.extra) == ["reward_std"]


def test_command_prints_and_writes_tables_and_sheets(tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["backtest", "--reward", str(folder(tmp_path)), "--simulated", "2", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "SaturationRule" in result.output
    assert "patience 50" in result.output
    assert "…" not in result.output
    told = json.loads((out / "reward.json").read_text())
    assert set(told) == {"runs", "runs without their learning rate", "runs cut short", "simulated"}
    assert told["runs"]["scores"]["SaturationRule"]["yes"]["saved"]["mean"] > 0.3
    assert (out / "runs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [["--reward", "nowhere"], []])
def test_command_says_what_is_missing(arguments):
    result = CliRunner().invoke(app, ["backtest", *arguments])
    assert result.exit_code == 2


def test_file_without_rewards_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.csv lacks"):
        read_reward_runs(folder(tmp_path, header="step,score,lr,reward_std"))
