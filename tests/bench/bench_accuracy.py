"""How well the final accuracy of small image classifiers is forecast, beside its last values."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from scale_callbacks import LossForecaster, Schedule

RUNS, TRAIN, SHARES = 24, 1200, (0.2, 0.3, 0.5, 0.7, 0.9)
FALLS = {
    "cosine": lambda t: 0.5 * (1.0 + np.cos(np.pi * t)),
    "linear": lambda t: 1.0 - t,
    "constant": lambda t: np.ones_like(t),
    "steps": lambda t: np.where(t < 0.5, 1.0, np.where(t < 0.75, 0.1, 0.01)),
}


def measure():
    """Everything here, by name."""
    torch.set_num_threads(1)
    pictures, digits = load_digits(return_X_y=True)
    data = torch.tensor(pictures / 16.0, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(digits)
    runs = [trained(seed, *data) for seed in range(RUNS)]
    found = {"runs": float(RUNS)}
    for share in SHARES:
        told = np.array([row for run in runs if (row := judged(*run, share)) is not None])
        error, held, last = np.abs(told[:, 0]), told[:, 1], np.abs(told[:, 2])
        found[f"runs forecast at {share:.0%}"] = float(len(told))
        found[f"median error of the accuracy at {share:.0%}, points"] = 100.0 * float(np.median(error))
        found[f"90th percentile at {share:.0%}, points"] = 100.0 * float(np.quantile(error, 0.9))
        found[f"median error of its last three values at {share:.0%}, points"] = 100.0 * float(
            np.median(last)
        )
        found[f"held at {share:.0%}, %"] = 100.0 * float(held.mean())
    return found


def judged(schedule, epoch, steps, values, share):
    """Error, whether the interval held, and error of the last values seen; None before eight values."""
    seen, final = steps <= share * schedule.horizon, values[-2:].mean()
    forecaster = LossForecaster(schedule, steps_per_epoch=epoch, measure="score")
    forecaster.observe(steps[seen], values[seen])
    forecast = forecaster.forecast()
    if forecast is None:
        return None
    return forecast.value - final, forecast.low <= final <= forecast.high, values[seen][-3:].mean() - final


def trained(seed, pictures, digits):
    """One run of a recipe drawn at random: its plan, steps an epoch, steps and validation accuracies."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    shuffled = torch.tensor(rng.permutation(len(pictures)))
    train, held_out = shuffled[:TRAIN], shuffled[TRAIN:]
    batch, epochs = int(rng.choice((16, 32, 64))), int(rng.integers(20, 80))
    epoch = TRAIN // batch
    net, optimizer = network(rng)
    fall = FALLS[rng.choice(tuple(FALLS))](np.arange(epochs * epoch) / (epochs * epoch))
    rates, values = optimizer.defaults["lr"] * fall, []
    for start in range(0, len(rates), epoch):
        order = train[torch.randperm(TRAIN)]
        for step in range(epoch):
            optimizer.param_groups[0]["lr"] = float(rates[start + step])
            rows = order[step * batch : (step + 1) * batch]
            noisy = pictures[rows] + 0.3 * torch.randn(batch, 1, 8, 8)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(noisy), digits[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            values.append((net(pictures[held_out]).argmax(1) == digits[held_out]).float().mean().item())
    plan = Schedule.from_points(np.arange(1, len(rates) + 1), np.maximum(rates, 1e-12))
    return plan, epoch, epoch * np.arange(1.0, epochs + 1), np.array(values)


def network(rng):
    """A linear map, a multilayer perceptron or a convolutional network, under SGD or Adam."""
    flat = nn.Flatten()
    nets = (
        nn.Sequential(flat, nn.Linear(64, 10)),
        nn.Sequential(flat, nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
        nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), flat, nn.Linear(144, 10)),
    )
    net = nets[int(rng.integers(len(nets)))]
    if rng.random() < 0.5:
        return net, torch.optim.SGD(net.parameters(), 10.0 ** rng.uniform(-2.0, -0.7), momentum=0.9)
    return net, torch.optim.Adam(net.parameters(), 10.0 ** rng.uniform(-4.0, -2.5))
