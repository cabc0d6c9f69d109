import os

import numpy as np
import pytest
from hypothesis import settings

from scale_callbacks import Schedule

settings.register_profile("search", deadline=None)  # an example may take long on a busy machine
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "search"))

# Programs that tests start with torchrun: importing them, as the collection of doctests would, runs them.
collect_ignore_glob = ["integrations/*_run.py"]


@pytest.fixture
def schedule():
    return Schedule.wsd(1e-3, 1000, warmup=50, cooldown=200)


@pytest.fixture
def losses(schedule):
    """A made-up run of 1,000 steps: a power of the area, a drop in the cooldown, white noise."""
    steps = np.arange(1, 1001)
    share = schedule.area(steps) / schedule.area(1000)
    drop = schedule.annealing_area(steps) / schedule.annealing_area(1000)
    noise = np.random.default_rng(0).normal(0, 0.02, 1000)
    return 2.0 + 0.5 * (share + 0.01) ** -0.4 - 0.1 * drop + noise
