from pathlib import Path

import numpy as np
import pytest

from scale_callbacks.backtest import Run, load_runs, replay

CURVES = Path(__file__).parent / "data" / "curves"


def public() -> list[Run]:
    bundles = (load_runs(CURVES / f"{name}.npz") for name in ("loss", "small", "finetune"))
    return [run for runs in bundles for run in runs if run.counts]


@pytest.mark.parametrize("run", public(), ids=lambda run: run.name)
def test_every_public_run_gets_finite_forecasts_inside_their_intervals(run: Run) -> None:
    told = list(replay(run))
    shares = [share for share, _ in told]
    seen = [s for s in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9) if np.sum(run.steps <= s * run.schedule.horizon) >= 8]
    assert shares == seen
    for _, forecast in told:
        assert np.isfinite([forecast.value, forecast.low, forecast.high]).all()
        assert 0.0 < forecast.low < forecast.value < forecast.high


def test_language_models_are_forecast_at_least_as_well_as_the_method_to_beat() -> None:
    runs = [run for run in load_runs(CURVES / "loss.npz") if run.counts and run.language_model]
    errors: dict[float, list[float]] = {0.2: [], 0.5: [], 0.9: []}
    for run in runs:
        for share, forecast in replay(run, shares=tuple(errors)):
            errors[share].append(100.0 * abs(forecast.value / run.final - 1.0))
    for share, median, tail in ((0.2, 1.14, 3.28), (0.5, 0.7, 2.3), (0.9, 0.11, 0.68)):
        assert np.median(errors[share]) < median
        assert np.quantile(errors[share], 0.9) < tail
