"""Train many small, short GPTs and write their loss curves: what the forecaster's prior knows of such runs.

    python examples/make_small_curves.py runs/small_curves --minutes 60

Sizes, lengths, rates, schedules, batches, texts and seeds are drawn at random, run by run, from `--first` on;
the demo's own settings are none of them. Each run leaves `<run>.csv` and `<run>.val.csv` (step, lr, loss) and
a line in `runs.jsonl`. One thread, nothing to download.
"""

import csv
import itertools
import json
import math
import random
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import pretrain_gpt as demo
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

Row = tuple[int, float, float]  # step, learning rate, loss


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on."""

    text: str
    width: int
    depth: int
    heads: int
    positions: str
    context: int
    batch: int
    total_steps: int
    warmup_steps: int
    schedule: str
    peak_lr: float
    weight_decay: float
    seed: int


def draw(seed: int) -> Recipe:
    """Draw a recipe, small enough for a minute or two of one core."""
    rng = random.Random(seed)
    width, depth, heads = rng.choice(
        [
            (48, 3, 2),
            (64, 3, 2),
            (64, 4, 2),
            (80, 4, 2),
            (96, 2, 3),
            (96, 3, 3),
            (96, 4, 3),
            (128, 3, 4),
            (128, 4, 4),
        ]
    )
    context, batch = rng.choice([(64, 8), (64, 16), (64, 32), (128, 4), (128, 8), (128, 16), (256, 4)])
    steps = round(400 * 10 ** rng.random(), -1)
    bytes_most = 2e6 * (96 / width) ** 1.5 * 4 / depth
    steps = max(400, min(steps, bytes_most / (context * batch)))
    steps = int(steps // 20 * 20)
    return Recipe(
        text=rng.choice(["python", "python", "headers", "prose"]),
        width=width,
        depth=depth,
        heads=heads,
        positions=rng.choice(["rotary", "rotary", "learned"]),
        context=context,
        batch=batch,
        total_steps=steps,
        warmup_steps=int(rng.choice([10, 0.02 * steps, 0.05 * steps, 0.1 * steps])),
        schedule=rng.choice(list(SHAPES)),
        peak_lr=float(f"{4e-4 * 15 ** rng.random() * math.sqrt(64 / width):.2g}"),
        weight_decay=rng.choice([0.0, 0.1, 0.1, 0.3]),
        seed=seed,
    )


# --- rates, as a share of the peak over the share of the steps done -----------------------------------------


def cosine(floor: float) -> Callable[[float], float]:
    return lambda done: floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def linear(floor: float) -> Callable[[float], float]:
    return lambda done: floor + (1 - floor) * (1 - done)


def cooldown(share: float, bend: float = 1.0) -> Callable[[float], float]:
    return lambda done: 1 - (max(0.0, done - 1 + share) / share) ** bend


def steps_down(*drops: tuple[float, float]) -> Callable[[float], float]:
    return lambda done: min([1.0, *(rate for at, rate in drops if done >= at)])


SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": cosine(0.0),
    "cosine10": cosine(0.1),
    "linear": linear(0.0),
    "linear10": linear(0.1),
    "wsd10": cooldown(0.1),
    "wsd20": cooldown(0.2),
    "wsd20sqrt": cooldown(0.2, 0.5),
    "wsd40": cooldown(0.4),
    "twostage": steps_down((0.6, 0.3)),
    "twostage_late": steps_down((0.8, 0.1)),
    "threestage": steps_down((0.5, 0.316), (0.8, 0.1)),
}


# --- texts --------------------------------------------------------------------------------------------------


def texts(kind: str) -> tuple[Tensor, Tensor]:
    """Training and held-out bytes of one kind of text that is on every machine with torch."""
    if kind == "python":
        return demo.library_text()
    packages = Path(sysconfig.get_paths()["purelib"])
    patterns = {
        "headers": ["torch/include/**/*.h"],
        "prose": ["*.dist-info/METADATA", "*.dist-info/**/LICENSE*"],
    }
    paths = sorted({path for pattern in patterns[kind] for path in packages.glob(pattern) if path.is_file()})
    random.Random(0).shuffle(paths)
    whole = b"".join(path.read_bytes() for path in paths)[:12_000_000]
    cut = len(whole) // 20
    return tuple(torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in (whole[cut:], whole[:cut]))


# --- training -----------------------------------------------------------------------------------------------


class UnrotatedBlock(demo.Block):
    """A block that does not know about positions."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        heard = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(heard.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class LearnedPositions(nn.Module):
    """A GPT with learned positions: it stays longer where it knows only how often each byte comes."""

    def __init__(self, width: int, depth: int, heads: int, context: int) -> None:
        super().__init__()
        self.gpt = demo.GPT(width, depth, heads)
        for block in self.gpt.blocks:
            block.__class__ = UnrotatedBlock
        self.positions = nn.Parameter(0.02 * torch.randn(context, width))

    def forward(self, text: Tensor) -> Tensor:
        stream = self.gpt.embed(text) + self.positions[: text.shape[1]]
        return F.linear(self.gpt.norm(self.gpt.blocks(stream)), self.gpt.embed.weight)


def cut(text: Tensor, starts: Tensor, context: int) -> Tensor:
    return text[starts[:, None] + torch.arange(context + 1)].long()


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def train(recipe: Recipe, text: Tensor, held_out: Tensor) -> Iterator[tuple[int, float, float, float | None]]:
    """Train a recipe; yields step, rate, loss, and now and then a validation loss."""
    torch.manual_seed(recipe.seed)
    order = torch.Generator().manual_seed(recipe.seed)
    sizes = recipe.width, recipe.depth, recipe.heads
    model = LearnedPositions(*sizes, recipe.context) if recipe.positions == "learned" else demo.GPT(*sizes)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=recipe.weight_decay)
    windows = max(8, 8192 // recipe.context)
    validation = cut(
        held_out, torch.linspace(0, len(held_out) - recipe.context - 1, windows).long(), recipe.context
    )
    shape = SHAPES[recipe.schedule]
    for step in range(1, recipe.total_steps + 1):
        after = (step - recipe.warmup_steps) / (recipe.total_steps - recipe.warmup_steps + 1)
        rate = recipe.peak_lr * (step / recipe.warmup_steps if after <= 0 else shape(after))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(text) - recipe.context, (recipe.batch,), generator=order)
        loss = loss_of(model, cut(text, starts, recipe.context))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        measured = None
        if step % (recipe.total_steps // 20) == 0 or step == recipe.total_steps:
            with torch.no_grad():
                measured = loss_of(model, validation).item()
        yield step, rate, loss.item(), measured


def logged(rows: list[Row], every: int, *, means: bool) -> list[Row]:
    """What a log tells of steps, rates and losses: every few steps the mean since the last, or one loss."""
    told = []
    for end in range(every, len(rows) + 1, every):
        step, rate, loss = rows[end - 1]
        since = [row[2] for row in rows[end - every : end]]
        told.append((step, rate, sum(since) / every if means else loss))
    return told


@dataclass(frozen=True)
class Made:
    """A run: its name, what is known of it, its steps with now and then a validation loss, and its log."""

    name: str
    about: dict[str, object]
    rows: list[tuple[int, float, float, float | None]]
    told: list[Row]


def make(out: Path, minutes: float, seeds: Iterable[int], run: Callable[[int], Made]) -> None:
    """Train run after run for so many minutes; each leaves two curves and a line in `runs.jsonl`."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    for seed in seeds:
        if time.monotonic() - begun >= 60 * minutes:
            return
        made = run(seed)
        validated = [(step, rate, measured) for step, rate, _, measured in made.rows if measured is not None]
        write(out / f"{made.name}.csv", made.told)
        write(out / f"{made.name}.val.csv", validated)
        last = [loss for _, _, loss in made.told[-max(3, len(made.told) // 50) :]]
        final = sum(last) / len(last)
        line = {
            "run": made.name,
            "license": "made for this project",
            "flags": [],
            **made.about,
            "target": "train",
            "final": round(final, 5),
            "final_val": validated[-1][2],
            "n_points": len(made.told),
            "n_val": len(validated),
        }
        if not math.isfinite(final):
            line["flags"] = [*line["flags"], "diverged"]
        with (out / "runs.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{time.monotonic() - begun:6.0f} s  {made.name}  final {final:.3f}", flush=True)


def write(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["step", "lr", "loss"])
        out.writerows([step, f"{rate:.6g}", f"{loss:.5f}"] for step, rate, loss in rows)


SOURCES = {
    "python": "Python standard library sources",
    "headers": "C++ headers",
    "prose": "package docs",
}


def main(
    out: Path,
    minutes: Annotated[float, typer.Option(help="Start no run after so many minutes.")] = 60,
    first: Annotated[int, typer.Option(help="Seed of the first recipe.")] = 1,
) -> None:
    """Train recipe after recipe and write their curves to OUT."""
    kinds = {kind: texts(kind) for kind in SOURCES}

    def run(seed: int) -> Made:
        recipe = draw(seed)
        size = f"d{recipe.width}l{recipe.depth}_{recipe.total_steps}"
        rows = list(train(recipe, *kinds[recipe.text]))
        about = {"model": f"byte-level GPT, {recipe.positions} positions", "dataset": SOURCES[recipe.text]}
        name = f"{recipe.schedule}_{recipe.text}_{size}_seed{seed}"
        return Made(name, about | asdict(recipe), rows, logged([row[:3] for row in rows], 1, means=False))

    make(out, minutes, itertools.count(first), run)


if __name__ == "__main__":
    typer.run(main)
