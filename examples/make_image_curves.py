"""Train small image classifiers, of three architectures, and write their loss curves.

    python examples/make_image_curves.py fashion.npz runs/image_curves --minutes 60

What many people train first beside text: small pictures, read many times, with or without augmentation. The
pictures come from a file in the form of Keras' MNIST: x_train, y_train, x_test, y_test, bytes of n x 28 x 28
and labels from 0 to 9. Recipes are drawn at random, run by run, from `--first` on. Each run leaves
`<run>.csv` and `<run>.val.csv` (step, lr, loss) and a line in `runs.jsonl`. One thread.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import make_small_curves as small
import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

WORK = 6e11  # multiplications of a run, more or less: a minute or two of one core

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": small.cosine(0.0),
    "cosine10": small.cosine(0.1),
    "linear": small.linear(0.0),
    "wsd20": small.cooldown(0.2),
    "steps": small.steps_down((0.5, 0.1), (0.75, 0.01)),
    "thirds": small.steps_down((1 / 3, 0.1), (2 / 3, 0.01)),
    "exponential": lambda done: 0.01**done,
}


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on."""

    model: str
    width: int
    depth: int
    pictures: int
    batch: int
    total_steps: int
    epochs: float
    warmup_steps: int
    schedule: str
    optimizer: str
    peak_lr: float
    weight_decay: float
    augment: str
    smoothing: float
    dropout: float
    log_every: int
    logs_means: bool
    seed: int


def draw(seed: int) -> Recipe:
    """Draw a recipe, small enough for a minute or two of one core."""
    rng = random.Random(seed)
    model = rng.choice(["resnet", "resnet", "vit", "vit", "mlp"])
    width, depth = rng.choice(
        {
            "resnet": [(12, 1), (16, 1), (16, 2), (24, 1)],
            "vit": [(48, 4), (64, 3), (64, 4), (96, 3)],
            "mlp": [(128, 2), (256, 2), (512, 3)],
        }[model]
    )
    batch = rng.choice([32, 64, 64, 128])
    per_picture = {"resnet": 9e4 * width**2 * depth / 16, "vit": 8e2 * width**2 * depth, "mlp": 4e3 * width}[
        model
    ]
    steps = WORK * rng.uniform(0.5, 1.5) / (batch * per_picture)
    steps = max(600, min(8000, int(steps // 100 * 100)))
    optimizer = rng.choice(["sgd", "adamw", "adamw"] if model != "vit" else ["adamw"])
    low, high = {"sgd": (0.01, 0.2), "adamw": (3e-4, 4e-3)}[optimizer]
    pictures = rng.choice([5_000, 15_000, 60_000])
    return Recipe(
        model=model,
        width=width,
        depth=depth,
        pictures=pictures,
        batch=batch,
        total_steps=steps,
        epochs=round(steps / (pictures // batch), 2),
        warmup_steps=int(rng.choice([0, 20, 0.05 * steps, 0.1 * steps, 0.3 * steps])),
        schedule=rng.choice(["cosine", *SHAPES]),
        optimizer=optimizer,
        peak_lr=float(f"{low * (high / low) ** rng.random():.2g}"),
        weight_decay=rng.choice([5e-4] if optimizer == "sgd" else [0.01, 0.05, 0.1]),
        augment=rng.choice(["none", "crop", "crop", "cut", "mix"]),
        smoothing=rng.choice([0.0, 0.0, 0.1]),
        dropout=rng.choice([0.0, 0.0, 0.1]),
        log_every=rng.choice([5, 10, 20, 50]),
        logs_means=rng.random() < 0.6,
        seed=seed,
    )


# --- models -------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.past = (
            nn.Identity() if stride == 1 and into == out else nn.Conv2d(into, out, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        return F.relu(inner + self.past(x))


class Transformer(nn.Module):
    """A vision transformer over patches of seven by seven."""

    def __init__(self, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 7, 7)
        self.place = nn.Parameter(0.02 * torch.randn(1, 16, width))
        layer = nn.TransformerEncoderLayer(
            width, width // 16, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.blocks(tokens).mean(dim=1))


def model_of(recipe: Recipe) -> nn.Module:
    """The model of a recipe, for pictures of 28 by 28."""
    if recipe.model == "vit":
        return Transformer(recipe.width, recipe.depth, recipe.dropout)
    if recipe.model == "mlp":
        layers: list[nn.Module] = [nn.Flatten()]
        for i in range(recipe.depth):
            layers += [
                nn.Linear(recipe.width if i else 784, recipe.width),
                nn.ReLU(),
                nn.Dropout(recipe.dropout),
            ]
        return nn.Sequential(*layers, nn.Linear(recipe.width, 10))
    blocks: list[nn.Module] = [nn.Conv2d(1, recipe.width, 3, 2, 1)]
    widths = [recipe.width, 2 * recipe.width, 4 * recipe.width]
    for into, out in zip([recipe.width, *widths[:-1]], widths, strict=True):
        blocks.append(Residual(into, out, 1 if into == out else 2))
        blocks += [Residual(out, out, 1) for _ in range(recipe.depth - 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(recipe.dropout), nn.Linear(widths[-1], 10)]
    return nn.Sequential(*blocks, *head)


# --- training -----------------------------------------------------------------------------------------------


def augmented(pictures: Tensor, how: str, dice: torch.Generator) -> Tensor:
    """A batch shifted by up to three pixels and mirrored; "cut" blanks a square of it as well."""
    if how == "none":
        return pictures
    across, down = torch.randint(-3, 4, (2,), generator=dice).tolist()
    pictures = F.pad(pictures, (3, 3, 3, 3))[:, :, 3 + down : 31 + down, 3 + across : 31 + across]
    if torch.rand(1, generator=dice) < 0.5:
        pictures = pictures.flip(3)
    if how == "cut":
        top, left = torch.randint(0, 18, (2,), generator=dice).tolist()
        pictures = pictures.clone()
        pictures[:, :, top : top + 10, left : left + 10] = 0.0
    return pictures


def batches(recipe: Recipe, pictures: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of as many pictures as the recipe has, in a new order each epoch; "mix" blends pairs."""
    dice = torch.Generator().manual_seed(recipe.seed)
    while True:
        for some in torch.randperm(recipe.pictures, generator=dice).split(recipe.batch):
            if len(some) < recipe.batch:
                continue
            seen, truth = augmented(pictures[some], recipe.augment, dice), F.one_hot(labels[some], 10).float()
            if recipe.augment == "mix":
                share = float(torch.rand(1, generator=dice))
                seen, truth = (share * it + (1 - share) * it.roll(1, 0) for it in (seen, truth))
            yield seen, truth


def train(recipe: Recipe, data: dict[str, Tensor]) -> Iterator[tuple[int, float, float, float | None]]:
    """Train a recipe; yields step, rate, loss, and now and then a validation loss."""
    torch.manual_seed(recipe.seed)
    model, decay = model_of(recipe), recipe.weight_decay
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), weight_decay=decay)
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=decay)
    shape, steps = SHAPES[recipe.schedule], recipe.total_steps
    fed = batches(recipe, data["x_train"], data["y_train"])
    for step, (pictures, truth) in zip(range(1, steps + 1), fed, strict=False):
        after = (step - recipe.warmup_steps) / (steps - recipe.warmup_steps + 1)
        rate = recipe.peak_lr * (step / recipe.warmup_steps if after <= 0 else shape(after))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = F.cross_entropy(model(pictures), truth, label_smoothing=recipe.smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        measured = None
        if step % (steps // 20) == 0 or step == steps:
            model.eval()
            with torch.no_grad():
                measured = F.cross_entropy(model(data["x_test"][:2000]), data["y_test"][:2000]).item()
            model.train()
        yield step, rate, loss.item(), measured


def read(path: Path) -> dict[str, Tensor]:
    """Pictures of the file as one channel between 0 and 1, training ones in a fixed random order."""
    with np.load(path) as file:
        data = {name: torch.from_numpy(file[name]) for name in ("x_train", "y_train", "x_test", "y_test")}
    mixed = torch.randperm(len(data["x_train"]), generator=torch.Generator().manual_seed(0))
    for part, order in (("train", mixed), ("test", torch.arange(len(data["x_test"])))):
        data[f"x_{part}"] = data[f"x_{part}"][order].unsqueeze(1).float() / 255
        data[f"y_{part}"] = data[f"y_{part}"][order].long()
    return data


def main(
    pictures: Path,
    out: Path,
    minutes: Annotated[float, typer.Option(help="Start no run after so many minutes.")] = 60,
    first: Annotated[int, typer.Option(help="Seed of the first recipe.")] = 1,
    stride: Annotated[int, typer.Option(help="From one seed to the next.")] = 1,
) -> None:
    """Train recipe after recipe on PICTURES and write their curves to OUT."""
    data = read(pictures)

    def run(seed: int) -> small.Made:
        recipe = draw(seed)
        name = f"{recipe.schedule}_{recipe.model}_w{recipe.width}d{recipe.depth}_seed{seed}"
        rows = list(train(recipe, data))
        about = {
            "dataset": f"{pictures.stem}, {recipe.pictures} pictures, read {recipe.epochs:g} times",
            "flags": ["not_language_model"],
        }
        told = small.logged([row[:3] for row in rows], recipe.log_every, means=recipe.logs_means)
        return small.Made(name, about | asdict(recipe), rows, told)

    small.make(out, minutes, itertools.count(first, stride), run)


if __name__ == "__main__":
    typer.run(main)
