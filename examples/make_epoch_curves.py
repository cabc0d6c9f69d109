"""Train GPTs of a million parameters for some epochs over a small text and write their loss curves.

    python examples/make_epoch_curves.py runs/epoch_curves --minutes 60

What many people train first: words of a vocabulary or bytes, a text read several times, losses logged every
few steps. Beside `make_small_curves.py`, whose runs are smaller, noisier and read no text twice. Recipes are
drawn at random, run by run, from `--first` on. Each run leaves `<run>.csv` and `<run>.val.csv` (step, lr,
loss) and a line in `runs.jsonl`. One thread, nothing to download; needs the package `tokenizers`.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import make_small_curves as small
import pretrain_gpt as demo
import torch
import typer
from torch import Tensor, nn

TOKENS = 3e6  # that a model of a million parameters reads, more or less; a larger one fewer


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on."""

    text: str
    vocabulary: int
    width: int
    depth: int
    context: int
    batch: int
    total_steps: int
    epochs: float
    warmup_steps: int
    schedule: str
    peak_lr: float
    weight_decay: float
    beta2: float
    log_every: int
    logs_means: bool
    seed: int


def draw(seed: int) -> Recipe:
    """Draw a recipe, small enough for some minutes of one core."""
    rng = random.Random(seed)
    width, depth = rng.choice([(128, 4), (160, 4), (192, 4), (192, 6), (256, 3), (256, 4)])
    vocabulary = rng.choice([256, 1024, 4096])
    context, batch = rng.choice([(64, 16), (128, 4), (128, 8), (128, 16), (256, 4)])
    million = (12 * depth * width**2 + vocabulary * width) / 1e6
    steps = TOKENS * min(1.0, 1.0 / million) * rng.uniform(0.5, 2.5) / (context * batch)
    steps = max(1000, min(8000, int(steps // 100 * 100)))
    return Recipe(
        text=rng.choice(["python", "python", "headers", "prose"]),
        vocabulary=vocabulary,
        width=width,
        depth=depth,
        context=context,
        batch=batch,
        total_steps=steps,
        epochs=round(2 ** rng.uniform(0.0, 4.0), 2),
        warmup_steps=int(rng.choice([20, 100, 0.03 * steps, 0.1 * steps])),
        schedule=rng.choice(["cosine10", "cosine10", "cosine", "linear", "constant", "wsd20"]),
        peak_lr=float(f"{3e-4 * 6 ** rng.random():.2g}"),
        weight_decay=rng.choice([0.01, 0.1, 0.1]),
        beta2=rng.choice([0.95, 0.99, 0.999]),
        log_every=rng.choice([5, 10, 10, 20]),
        logs_means=rng.random() < 0.6,
        seed=seed,
    )


def tokens(texts: tuple[Tensor, Tensor], vocabulary: int) -> tuple[Tensor, Tensor]:
    """Both texts in the tokens of a byte-pair vocabulary learned from the first; bytes for 256."""
    if vocabulary == 256:
        return texts
    from tokenizers import ByteLevelBPETokenizer

    words = [bytes(text.numpy()).decode("utf-8", "ignore") for text in texts]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(words[0][:3_000_000].splitlines(keepends=True), vocab_size=vocabulary)
    coded = [tokenizer.encode_batch(word.splitlines(keepends=True)) for word in words]
    return tuple(torch.tensor([i for line in lines for i in line.ids], dtype=torch.int32) for lines in coded)


class Wider(demo.GPT):
    """The demo's GPT with a vocabulary of its own."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe.width, recipe.depth, recipe.width // 32)
        self.embed = nn.Embedding(recipe.vocabulary, recipe.width)
        nn.init.normal_(self.embed.weight, std=0.02)


def batches(recipe: Recipe, text: Tensor) -> Iterator[Tensor]:
    """Batches out of the part of the text that so many epochs leave, in a new order each epoch."""
    wanted = recipe.total_steps * recipe.batch * recipe.context
    text = text[: max(int(wanted / recipe.epochs), recipe.batch * recipe.context) + 1]
    order = torch.Generator().manual_seed(recipe.seed)
    while True:
        first = int(torch.randint(recipe.context, (1,), generator=order))
        starts = torch.arange(first, len(text) - recipe.context, recipe.context)
        if len(starts) < recipe.batch:
            starts = torch.arange(0, len(text) - recipe.context, recipe.context)
        for some in starts[torch.randperm(len(starts), generator=order)].split(recipe.batch):
            if len(some) == recipe.batch:
                yield small.cut(text, some, recipe.context)


def train(recipe: Recipe, text: Tensor, held_out: Tensor) -> Iterator[tuple[int, float, float, float | None]]:
    """Train a recipe; yields step, rate, loss, and now and then a validation loss."""
    torch.manual_seed(recipe.seed)
    model = Wider(recipe)
    betas, decay = (0.9, recipe.beta2), recipe.weight_decay
    optimizer = torch.optim.AdamW(model.parameters(), betas=betas, weight_decay=decay)
    spread = torch.linspace(0, len(held_out) - recipe.context - 1, max(8, 8192 // recipe.context)).long()
    validation = small.cut(held_out, spread, recipe.context)
    shape, steps = small.SHAPES[recipe.schedule], recipe.total_steps
    for step, batch in zip(range(1, steps + 1), batches(recipe, text), strict=False):
        after = (step - recipe.warmup_steps) / (steps - recipe.warmup_steps + 1)
        rate = recipe.peak_lr * (step / recipe.warmup_steps if after <= 0 else shape(after))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = small.loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        measured = None
        if step % (steps // 20) == 0 or step == steps:
            with torch.no_grad():
                measured = small.loss_of(model, validation).item()
        yield step, rate, loss.item(), measured


def main(
    out: Path,
    minutes: Annotated[float, typer.Option(help="Start no run after so many minutes.")] = 60,
    first: Annotated[int, typer.Option(help="Seed of the first recipe.")] = 1,
    stride: Annotated[int, typer.Option(help="From one seed to the next.")] = 1,
) -> None:
    """Train recipe after recipe and write their curves to OUT."""

    def run(seed: int) -> small.Made:
        recipe = draw(seed)
        texts = tokens(small.texts(recipe.text), recipe.vocabulary)
        name = f"{recipe.schedule}_{recipe.text}{recipe.vocabulary}_d{recipe.width}l{recipe.depth}_seed{seed}"
        rows = list(train(recipe, *texts))
        about = {
            "model": "GPT of about a million parameters, rotary positions",
            "dataset": f"{recipe.text}, read {recipe.epochs:g} times",
        }
        told = small.logged([row[:3] for row in rows], recipe.log_every, means=recipe.logs_means)
        return small.Made(name, about | asdict(recipe), rows, told)

    small.make(out, minutes, itertools.count(first, stride), run)


if __name__ == "__main__":
    typer.run(main)
