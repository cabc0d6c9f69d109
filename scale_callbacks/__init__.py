"""Live forecasts of a training run's final loss, from scaling laws that know the learning-rate schedule."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scale_callbacks.forecast import Forecast, Status
from scale_callbacks.forecaster import LossForecaster
from scale_callbacks.schedule import Schedule
from scale_callbacks.stopping import Decision, Rule

if TYPE_CHECKING:
    from scale_callbacks.deviation import DivergenceRule as DivergenceRule
    from scale_callbacks.integrations.lightning import LossForecast as LossForecast
    from scale_callbacks.integrations.mlflow import MlflowSink as MlflowSink
    from scale_callbacks.integrations.saturation import SaturationStopping as SaturationStopping
    from scale_callbacks.integrations.transformers import LossForecastCallback as LossForecastCallback
    from scale_callbacks.integrations.transformers import (
        SaturationStoppingCallback as SaturationStoppingCallback,
    )
    from scale_callbacks.monitor import Monitor as Monitor
    from scale_callbacks.reward import RewardForecaster as RewardForecaster
    from scale_callbacks.saturation import SaturationRule as SaturationRule
    from scale_callbacks.sinks import ConsoleSink as ConsoleSink
    from scale_callbacks.sinks import JsonlSink as JsonlSink
    from scale_callbacks.sinks import MemorySink as MemorySink
    from scale_callbacks.sinks import Sink as Sink
    from scale_callbacks.target import TargetRule as TargetRule

__version__ = "0.1.0"

# Loaded on first use, so that `import scale_callbacks` stays quick and needs no framework.
_LAZY = {
    "ConsoleSink": "scale_callbacks.sinks",
    "DivergenceRule": "scale_callbacks.deviation",
    "JsonlSink": "scale_callbacks.sinks",
    "LossForecast": "scale_callbacks.integrations.lightning",
    "LossForecastCallback": "scale_callbacks.integrations.transformers",
    "MemorySink": "scale_callbacks.sinks",
    "MlflowSink": "scale_callbacks.integrations.mlflow",
    "Monitor": "scale_callbacks.monitor",
    "RewardForecaster": "scale_callbacks.reward",
    "SaturationRule": "scale_callbacks.saturation",
    "SaturationStopping": "scale_callbacks.integrations.saturation",
    "SaturationStoppingCallback": "scale_callbacks.integrations.transformers",
    "Sink": "scale_callbacks.sinks",
    "TargetRule": "scale_callbacks.target",
}

__all__ = ["Decision", "Forecast", "LossForecaster", "Rule", "Schedule", "Status", *_LAZY]  # noqa: PLE0604, RUF100


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
