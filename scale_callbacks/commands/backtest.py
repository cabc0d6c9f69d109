"""`scale-callbacks backtest`: finished runs replayed and scored."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from scale_callbacks import backtest as bt
from scale_callbacks.peers import PEERS
from scale_callbacks.runs import read_runs

Scores = dict[str, dict[str, Any]]  # by share of the plan seen


def backtest(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders with a runs.jsonl, folders of CSV files, or CSV files."),
    ] = None,
    reward: Annotated[
        Path | None,
        typer.Option(help="Folder (runs.jsonl) or .npz of reward curves: replays SaturationRule."),
    ] = None,
    simulated: Annotated[
        int, typer.Option(help="With --reward: also so many simulated curves of known truth.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for backtest.json and the pictures.")] = None,
    level: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.9,
    peers: Annotated[bool, typer.Option(help="Fit today's methods beside.")] = True,
    pictures: Annotated[bool, typer.Option(help="Draw each run's forecasts over time (needs --out).")] = True,
    workers: Annotated[int, typer.Option(help="Processes.")] = os.cpu_count() or 1,
) -> None:
    """Replay finished runs as if they were live, and score the forecasts, or with --reward the stops."""
    console = Console()
    if reward is not None:
        _backtest_rewards(console, reward, out, simulated)
        return
    if not paths:
        raise typer.BadParameter("give runs to replay, or --reward DIR")
    try:
        runs = [run for run in read_runs(paths) if run.scored]
    except (OSError, ValueError) as fault:
        raise typer.BadParameter(str(fault)) from fault
    if not 0 < level < 1:
        raise typer.BadParameter(f"--level {level} must lie between 0 and 1")
    if not runs:
        raise typer.BadParameter("no run that counts: all are marked as diverged or the like")
    columns = TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("replay", total=len(runs))
        replayed = bt.replay_all(
            runs,
            workers=workers,
            done=lambda: progress.advance(task),
            level=level,
            peers=tuple(PEERS) if peers else (),
            over_time=pictures and out is not None,
        )
    result = bt.as_json(replayed)
    for group, shares in result["scores"].items():
        console.print(_table(group, shares, level))
        if peers:
            console.print(_peers_table(group, shares))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "backtest.json").write_text(json.dumps(result, indent=1))
        if pictures:
            from scale_callbacks.contact_sheet import draw_contact_sheets

            for page in draw_contact_sheets(replayed, out):
                console.print(f"wrote {page}")
        console.print(f"wrote {out / 'backtest.json'}")


def _backtest_rewards(console: Console, folder: Path, out: Path | None, simulated: int) -> None:
    from scale_callbacks import reward_backtest as rb
    from scale_callbacks import reward_runs as rr
    from scale_callbacks.reward_sheet import draw_sheet, score_table
    from scale_callbacks.saturation import SaturationRule
    from scale_callbacks.simulate import simulate

    try:
        runs = rr.read_reward_runs(folder)
    except (OSError, ValueError, KeyError) as fault:
        raise typer.BadParameter(str(fault)) from fault
    sets = {"runs": runs, "runs without their learning rate": runs, "runs cut short": rr.cut_short(runs)}
    if simulated > 0:
        sets["simulated"] = [rr.as_run(curve) for curve in simulate(simulated)]
    result = {}
    for name, some in sets.items():
        stops = rb.replay(some, SaturationRule(), scheduled=name == "runs")
        result[name] = rb.as_json(stops) | {"coverage": rb.coverage(some, scheduled=name == "runs")}
        console.print(score_table(name, result[name]["scores"]))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            console.print(f"wrote {draw_sheet(some, stops, out / f'{name.replace(chr(32), chr(95))}.png')}")
    if out is not None:
        (out / "reward.json").write_text(json.dumps(result, indent=1))
        console.print(f"wrote {out / 'reward.json'}")


def _table(group: str, shares: Scores, level: float) -> Table:
    table = Table(title=f"{group}: |error| in % of the final loss, median / 90th percentile")
    for name in ("seen", "runs", "forecast", "bias", f"{level:.0%} coverage", "width", "CRPS"):
        table.add_column(name, justify="right")
    for share, row in shares.items():
        table.add_row(
            f"{float(share):.0%}",
            str(row["n"]),
            f"{row['median']:.2f} / {row['p90']:.2f}",
            f"{row['bias']:+.2f}",
            f"{row['coverage']:.2f}",
            f"{row['width']:.2f}",
            f"{row['crps']:.2f}",
        )
    return table


def _peers_table(group: str, shares: Scores) -> Table:
    table = Table(title=f"{group}: what is in use today, on the same runs")
    for name in ("seen", "method", "median / 90th", "beaten in", "skill (90% interval)"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for share, row in shares.items():
        for number, (peer, p) in enumerate(row["peers"].items()):
            table.add_row(
                "" if number else f"{float(share):.0%}",
                peer,
                f"{p['median']:.2f} / {p['p90']:.2f}",
                f"{p['beaten']:.0%}",
                f"{p['skill']:+.2f} ({p['skill_low']:+.2f} to {p['skill_high']:+.2f})",
                end_section=number == len(row["peers"]) - 1,
            )
    return table
