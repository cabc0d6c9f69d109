"""The callback's share of the demo's training time, MLflow's set-up and the closing apart."""

import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

from scale_callbacks import LossForecast

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
HOOKS = "on_train_batch_end", "on_train_epoch_start", "on_train_epoch_end", "on_validation_end"


class Timed(LossForecast):
    """The callback, with a clock around the hooks that run while training goes on."""

    latest = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.spent = self.begun = self.ended = 0.0
        Timed.latest = self


def timed(name):
    """The hook of that name, timed."""

    def hook(self, *args, **kwargs):
        start = time.perf_counter()
        self.begun = self.begun or start
        getattr(LossForecast, name)(self, *args, **kwargs)
        self.ended = time.perf_counter()
        self.spent += self.ended - start

    return hook


for name in HOOKS:
    setattr(Timed, name, timed(name))


def measure():
    """Everything here, by name."""
    import pretrain_gpt

    pretrain_gpt.LossForecast = Timed
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        pretrain_gpt.main(out=Path(folder))
    callback = Timed.latest
    trained = callback.ended - callback.begun
    return {
        "training time of the demo, s": trained,
        "time in the callback, s": callback.spent,
        "the callback's share, %": 100 * callback.spent / trained,
    }
