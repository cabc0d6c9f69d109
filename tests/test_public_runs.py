from pathlib import Path

import numpy as np
import pytest

from scale_callbacks.bundle import read_bundle
from scale_callbacks.forecast import Forecast
from scale_callbacks.forecaster import LossForecaster
from scale_callbacks.runs import Run

CURVES = Path(__file__).parent / "data" / "curves"
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def replay(run: Run, shares: tuple[float, ...] = SHARES) -> list[tuple[float, Forecast]]:
    forecaster = LossForecaster(run.schedule, steps_per_epoch=run.steps_per_epoch)
    told, start = [], 0
    for share in shares:
        end = int(np.searchsorted(run.steps, share * run.schedule.horizon, side="right"))
        forecaster.observe(run.steps[start:end], run.losses[start:end])
        forecast, start = forecaster.forecast(), end
        if forecast is not None:
            told.append((share, forecast))
    return told


def public() -> list[Run]:
    bundles = (read_bundle(CURVES / f"{name}.npz") for name in ("loss", "small", "finetune"))
    return [run for runs in bundles for run in runs if run.scored]


@pytest.mark.parametrize("run", public(), ids=lambda run: run.name)
def test_every_public_run_gets_finite_forecasts_inside_their_intervals(run: Run) -> None:
    told = replay(run)
    shares = [share for share, _ in told]
    seen = [s for s in SHARES if np.sum(run.steps <= s * run.schedule.horizon) >= 8]
    assert shares == seen
    for _, forecast in told:
        assert np.isfinite([forecast.value, forecast.low, forecast.high]).all()
        assert 0.0 < forecast.low < forecast.value < forecast.high


def test_language_models_are_forecast_at_least_as_well_as_the_method_to_beat() -> None:
    runs = [run for run in read_bundle(CURVES / "loss.npz") if run.scored and run.language_model]
    errors: dict[float, list[float]] = {0.2: [], 0.5: [], 0.9: []}
    for run in runs:
        for share, forecast in replay(run, tuple(errors)):
            errors[share].append(100.0 * abs(forecast.value / run.final - 1.0))
    for share, median, tail in ((0.2, 1.14, 3.28), (0.5, 0.7, 2.3), (0.9, 0.11, 0.68)):
        assert np.median(errors[share]) < median
        assert np.quantile(errors[share], 0.9) < tail
