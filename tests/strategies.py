"""All Hypothesis strategies of these tests: plans, and streams of losses as bad as they come."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from scale_callbacks import Schedule

SHAPES = {
    "power": lambda u, rng: 1.0 + 0.5 * (u + 0.01) ** -0.4,
    "constant": lambda u, rng: np.full_like(u, 1.0),
    "zero": lambda u, rng: np.zeros_like(u),
    "rising": lambda u, rng: 1.0 + u,
    "falling below zero": lambda u, rng: 1.0 - 3.0 * u,
    "gone to zero": lambda u, rng: np.exp(-500.0 * u),
    "stairs": lambda u, rng: 3.0 - np.floor(5.0 * u) / 2.0,
    "two levels": lambda u, rng: 1.0 + (np.arange(len(u)) % 2),
    "walk": lambda u, rng: np.cumsum(rng.standard_normal(len(u))),
    "wild": lambda u, rng: np.exp(12.0 * rng.standard_normal(len(u))),
}
TROUBLES = (
    "nan",
    "inf",
    "-inf",
    "huge",
    "spike",
    "dip",
    "jump",
    "freeze",
    "louder",
    "calmer",
    "rewind",
    "again",
)
SMALLEST, LARGEST = -30.0, 30.0  # decimal exponents of the losses


@dataclass(frozen=True)
class Stream:
    """A plan and what a run on it shows: (step, value) in the order in which they come, rewinds included."""

    schedule: Schedule
    steps: tuple[float, ...]
    values: tuple[float, ...]
    steps_per_epoch: float | None = None
    measure: str = "loss"

    @property
    def pieces(self) -> list[slice]:
        """Parts of increasing steps: a call may hold no rewind inside it."""
        cuts = [i for i in range(1, len(self.steps)) if self.steps[i] <= self.steps[i - 1]]
        return [slice(a, b) for a, b in zip([0, *cuts], [*cuts, len(self.steps)], strict=True)]


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Plans of all the usual shapes and of none, from three steps to a million."""
    horizon = int(10.0 ** draw(st.floats(0.5, 6.0)))
    kind = draw(st.sampled_from(["constant", "cosine", "wsd", "linear", "points"]))
    peak = draw(st.sampled_from([1e-3, 1e-3, 0.03, 0.1]))
    warmup = draw(st.integers(0, max(0, horizon // 4)))
    if kind == "constant":
        return Schedule.constant(peak, horizon, warmup=warmup)
    if kind == "cosine":
        return Schedule.cosine(peak, horizon, warmup=warmup)
    if kind == "linear":
        return Schedule.linear(peak, horizon)
    if kind == "wsd":
        return Schedule.wsd(peak, horizon, warmup=warmup, cooldown=max(1, horizon // 5))
    at = draw(st.sets(st.integers(1, horizon), min_size=1, max_size=6))
    rates = draw(st.lists(st.sampled_from([0.0, 0.01, 0.5, 1.0]), min_size=len(at), max_size=len(at)))
    return Schedule.from_points(sorted(at), rates if any(rates) else [1.0] * len(at))


@st.composite
def streams(draw: st.DrawFn, longest: int = 150) -> Stream:
    """Streams of up to `longest` losses: every shape, unit and noise, with troubles put in anywhere."""
    schedule = draw(schedules())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    end = schedule.horizon * draw(st.sampled_from([0.05, 0.3, 0.7, 1.0, 1.0, 1.5]))
    count = draw(st.integers(1, longest))
    whole = draw(st.booleans())
    steps = np.sort(rng.uniform(0.0, max(end, 1.0), count))
    steps = np.unique(np.ceil(steps) if whole else steps)
    shape = SHAPES[draw(st.sampled_from(sorted(SHAPES)))]
    noise = draw(st.sampled_from([0.0, 1e-6, 0.01, 0.1, 1.0]))
    values = shape(steps / schedule.horizon, rng) + noise * rng.standard_normal(len(steps))
    values = values * 10.0 ** draw(st.floats(SMALLEST, LARGEST))
    with np.errstate(over="ignore", invalid="ignore"):
        for trouble in draw(st.lists(st.sampled_from(TROUBLES), max_size=5)):
            steps, values = _with(trouble, steps, values, rng)
    epochs = draw(st.sampled_from([None, None, 0.5, 1.0, 1.01, 2.0, 2.7, 30.0, 1000.0]))
    told = None if epochs is None else schedule.horizon / epochs
    measure = draw(st.sampled_from(["loss", "loss", "perplexity", "score"]))
    return Stream(schedule, tuple(steps.tolist()), tuple(values.tolist()), told, measure)


def _with(trouble: str, steps: np.ndarray, values: np.ndarray, rng: np.random.Generator):
    at, size = int(rng.integers(len(steps))), 10.0 ** rng.uniform(0.0, 6.0)
    values = values.copy()
    if trouble in ("nan", "inf", "-inf"):
        values[at : at + int(rng.integers(1, 20))] = float(trouble)
    elif trouble == "huge":
        values[at] = 1e300
    elif trouble in ("spike", "dip"):
        values[at] *= size if trouble == "spike" else -size
    elif trouble == "jump":
        values[at:] *= size ** rng.uniform(-1.0, 1.0)
    elif trouble == "freeze":
        values[at:] = values[at]
    elif trouble in ("louder", "calmer"):  # as when the batch is made smaller, or larger
        middle = np.median(values[at:])
        values[at:] = middle + (values[at:] - middle) * (10.0 if trouble == "louder" else 0.1)
    elif trouble == "rewind":  # restarted from a checkpoint, with other batches
        back = int(rng.integers(at + 1))
        steps = np.concatenate((steps[:at], steps[back:]))
        values = np.concatenate((values[:at], values[back:] * (1.0 + 0.01 * rng.standard_normal())))
    else:  # the same step logged twice
        steps, values = np.insert(steps, at, steps[at]), np.insert(values, at, values[at])
    return steps, values


NONSENSE = (
    None,
    True,
    -1,
    0,
    1,
    2**63,
    10**400,
    0.5,
    -1e300,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "nan",
    "x",
    [],
    {},
)


@st.composite
def damages(draw: st.DrawFn):
    """Damage to a state: some parts left out, replaced by nonsense, nudged, doubled or cut short."""
    seeds = draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3))

    def damage(state):
        for seed in seeds:
            state = _damaged(state, np.random.default_rng(seed))
        return state

    return damage


def _damaged(value, rng: np.random.Generator):
    """Walk down a random path, and spoil what is at its end."""
    inner = isinstance(value, dict | list) and len(value) > 0
    if inner and rng.random() < 0.85:
        name = rng.choice(sorted(value)) if isinstance(value, dict) else int(rng.integers(len(value)))
        name = str(name) if isinstance(value, dict) else name
        kind = rng.random()
        if kind < 0.1:
            del value[name]
        elif kind < 0.15 and isinstance(value, list):
            value.insert(name, value[name])
        elif kind < 0.2 and isinstance(value, list):
            del value[name:]
        else:
            value[name] = _damaged(value[name], rng)
        return value
    if isinstance(value, int | float) and abs(value) < 1e300 and rng.random() < 0.5:
        return value * float(rng.choice([-1.0, 0.999, 2.0, 1e6])) + float(rng.choice([0.0, 1.0]))
    return NONSENSE[int(rng.integers(len(NONSENSE)))]
