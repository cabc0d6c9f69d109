"""How noise and gain follow the spread of the rewards, on the fifteen GRPO runs of the repository.

    python tests/bench/learning_signal.py

For each reward, over eighths of the run and relative to their mean: the variance of a step (half the mean
squared difference of neighbours), the squared spread within groups that it is held to follow, the gain a
step, and the gain a unit of learning rate times squared spread. Outages of the checker are bridged for the
gain.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from grpo_table import REWARDS, measure, read_bundle, without_outages

Floats = NDArray[np.float64]

PARTS = 8


def parts_of(name: str, stream: dict[str, Floats]) -> Floats:
    """(4, parts) variance, squared spread, gain a step, gain a unit of signal."""
    rewards, squared = stream["reward"], stream["reward_std"] ** 2
    signal = stream["learning_rate"] * squared
    curve = measure(without_outages(name, stream)["reward"])[2]
    edges = np.linspace(0, len(rewards) - 1, PARTS + 1).astype(int)
    rows = []
    for start, end in itertools.pairwise(edges.tolist()):
        gain = curve[end] - curve[start]
        variance = float(np.mean(np.diff(rewards[start : end + 1]) ** 2)) / 2.0
        rows.append(
            (variance, squared[start:end].mean(), gain / (end - start), gain / signal[start:end].sum())
        )
    return np.array(rows).T


def main() -> None:
    """Print the tables."""
    streams = read_bundle()
    names = ("variance of a step", "squared spread", "gain a step", "gain a unit of signal")
    for reward in REWARDS:
        told = np.mean([parts_of(n, s) for n, s in streams.items() if n.startswith(reward)], axis=0)
        print(reward)
        for name, row in zip(names, told, strict=True):
            print(f"  {name:22s}" + "".join(f"{value:7.2f}" for value in row / row.mean()))
        print(f"  variance and squared spread correlate by {np.corrcoef(told[0], told[1])[0, 1]:.2f}")


if __name__ == "__main__":
    typer.run(main)
