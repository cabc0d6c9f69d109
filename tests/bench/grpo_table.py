"""What the saturation rule does to fifteen GRPO runs: three rewards of the example, five seeds each.

    python tests/bench/grpo_table.py                 # replay the streams that come with the repository
    python tests/bench/grpo_table.py --record DIR    # make them anew first: fifteen runs of about a minute
    python tests/bench/grpo_table.py --live smooth-3 # stop one run live, beside its replay

A decision depends on nothing but the stream of rewards, so that a replay stops where a live run does.

Two measures are printed. One takes the smoothed reward as it was logged. The other bridges the outages of the
0/1 checker, which are no fault of the policy. The second was thought of when the runs of seeds 0 to 4 had
been seen, and fixed before those of seeds 5 to 9 were made (--record DIR --first-seed 5).
"""

import json
import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from scale_callbacks import Monitor, RewardForecaster, SaturationRule, Schedule
from scale_callbacks.reward_backtest import smoothed

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "tests" / "data" / "grpo.npz"
EXAMPLE = ROOT / "examples" / "grpo_saturation.py"
REWARDS, SEEDS = ("smooth", "s-shaped", "zero-one"), range(5)
COLUMNS = (
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "entropy",
    "completions/clipped_ratio",
    "learning_rate",
)
SIGNALS = ("reward_std", "frac_reward_zero_std", "entropy")
OUTAGES, OUTAGE, AMONG = 3, 0.03, (0.5, 0.85)  # of the example's checker
ENOUGH, SAVED = 0.95, 0.30  # share of the final gain, share of the steps

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """What stopping one run did.

    Attributes:
        run: "reward-seed".
        budget: steps planned.
        reached: first step at which the smoothed reward has made 95% of its final gain.
        stop: step of the stop; the budget where there was none.
        share: of the final gain at the stop, by the smoothed reward.
        saved: share of the steps.
        met: stopped not before `reached`, and 30% saved or more.
        reason: the rule's sentence.
    """

    run: str
    budget: int
    reached: int
    stop: int
    share: float
    saved: float
    met: bool
    reason: str


def measure(rewards: Floats) -> tuple[float, float, Floats]:
    """(start, end, smoothed curve): the means of the first 2% and of the last tenth."""
    n = len(rewards)
    curve = smoothed(np.arange(1.0, n + 1.0), rewards)
    return float(rewards[: max(4, n // 50)].mean()), float(rewards[-n // 10 :].mean()), curve


def replay(stream: dict[str, Floats], rule: SaturationRule | None = None) -> tuple[int, str]:
    """(step of the stop, sentence), from what the callback is told during a run."""
    n = len(stream["reward"])
    plan = Schedule.from_points(np.arange(1, n + 1), stream["learning_rate"])
    monitor = Monitor(RewardForecaster(n, schedule=plan), rules=[rule or SaturationRule()], name="reward")
    for i, reward in enumerate(stream["reward"]):
        extra = {name: stream[name][i] for name in SIGNALS}
        decision = monitor.observe(i + 1, reward, extra=extra)
        if decision.stop:
            return i + 1, decision.reason
    return n, decision.reason


def without_outages(run: str, stream: dict[str, Floats]) -> dict[str, Floats]:
    """The stream with the outages of the 0/1 reward's checker bridged: they pull the smoothed curve down."""
    rewards = stream["reward"]
    reward, seed = run.rsplit("-", 1)
    if reward != "zero-one":
        return stream
    chance, now = random.Random(int(seed)), np.arange(len(rewards)) / len(rewards)
    starts = [chance.uniform(*AMONG) for _ in range(OUTAGES)]
    up = ~np.any([(start <= now) & (now < start + OUTAGE) for start in starts], axis=0)
    return stream | {"reward": np.interp(now, now[up], rewards[up])}


def row(run: str, stream: dict[str, Floats], stop: int, reason: str) -> Row:
    """Judge a stop by the whole run."""
    start, end, curve = measure(stream["reward"])
    gain, n = end - start, len(curve)
    reached = int(np.argmax(curve >= start + ENOUGH * gain)) + 1
    share, saved = float(curve[stop - 1] - start) / gain, 1.0 - stop / n
    return Row(run, n, reached, stop, share, saved, reached <= stop and saved >= SAVED, reason)


def draw(rows: list[Row], streams: dict[str, dict[str, Floats]], path: Path) -> None:
    """Draw every run to its end, with the stop, and where 95% of the gain was reached (dotted)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(REWARDS), len(SEEDS), sharex=True, sharey=True).ravel()
    for r, axis in zip(rows, axes, strict=True):
        rewards, steps = streams[r.run]["reward"], np.arange(1, r.budget + 1)
        axis.plot(steps, rewards, color="0.8", lw=0.7)
        axis.plot(steps, measure(rewards)[2], color="0.2", lw=1.2)
        axis.axvline(r.reached, color="0.5", lw=1.0, ls=":")
        axis.axvline(r.stop, color="#009E73" if r.met else "#D55E00", lw=1.5)
        axis.set_title(f"{r.run}: stop at {r.stop}, {r.share:.1%} of the gain", fontsize=9)
    figure.savefig(path, dpi=80)


def read_bundle(path: Path = BUNDLE) -> dict[str, dict[str, Floats]]:
    """The streams that come with the repository, by run."""
    with np.load(path) as bundle:
        return {name: dict(zip(COLUMNS, bundle[name], strict=True)) for name in bundle.files}


def read_streams(folder: Path, seeds: Iterable[int]) -> dict[str, dict[str, Floats]]:
    """Streams written by the example's --record, by run."""
    streams = {}
    for name in (f"{reward}-{seed}" for reward in REWARDS for seed in seeds):
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        streams[name] = {column: np.array([told[column] for told in rows]) for column in COLUMNS}
    return streams


def record(folder: Path, seeds: Iterable[int]) -> None:
    """Run the example to its end without any rule, once a reward and seed; what is there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for reward in REWARDS:
        for seed in seeds:
            file = folder / f"{reward}-{seed}.jsonl"
            if not file.exists():
                _example(reward, seed, "--record", str(file))


def _example(reward: str, seed: int, *options: str) -> str:
    command = [sys.executable, str(EXAMPLE), "--reward", reward, "--seed", str(seed), *options]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main(
    record_to: Annotated[Path | None, typer.Option("--record", help="Make the streams anew, there.")] = None,
    first_seed: Annotated[int, typer.Option(help="Of five, with --record.")] = 0,
    bundle: Annotated[bool, typer.Option("--bundle", help="Then put them into the repository.")] = False,
    live: Annotated[list[str], typer.Option(help="Stop a run live too, for instance smooth-3.")] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Write the rows as JSON.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the runs and their stops.")] = None,
) -> None:
    """Print the table."""
    seeds = range(first_seed, first_seed + len(SEEDS))
    if record_to is not None:
        record(record_to, seeds)
    streams = read_bundle() if record_to is None else read_streams(record_to, seeds)
    if bundle:
        np.savez_compressed(BUNDLE, **{name: np.array(list(told.values())) for name, told in streams.items()})
    rows = [row(name, stream, *replay(stream)) for name, stream in streams.items()]
    print("run          budget  95% at  stop  gain reached  saved  met")
    for r in rows:
        print(
            f"{r.run:12s} {r.budget:6d} {r.reached:7d} {r.stop:5d} {r.share:13.1%} {r.saved:6.0%}"
            f"  {'yes' if r.met else 'no'}"
        )
    met = sum(r.met for r in rows)
    print(f"{met} of {len(rows)} stop after {ENOUGH:.0%} of the gain and save {SAVED:.0%} or more")
    bridged = [row(r.run, without_outages(r.run, streams[r.run]), r.stop, "") for r in rows]
    print(f"  (with the outages of the 0/1 reward's checker bridged: {sum(r.met for r in bridged)})")
    saved, share = (float(np.mean([getattr(r, name) for r in rows])) for name in ("saved", "share"))
    print(f"on average {saved:.0%} of the steps saved and {share:.1%} of the gain reached")
    for name in live:
        reward, seed = name.rsplit("-", 1)
        print(f"\n{name} live:\n{_example(reward, int(seed))}")
    if picture is not None:
        draw(rows, streams, picture)
    if out is not None:
        out.write_text(json.dumps([asdict(r) for r in rows], indent=1), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
