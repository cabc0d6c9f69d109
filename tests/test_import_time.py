"""`import scale_callbacks` loads numpy and little else."""

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(code, folder):
    """Processor time in ms of a fresh interpreter, and what it printed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPYCACHEPREFIX": str(folder), "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return 1e3 * spent, done.stdout


def test_the_import_loads_nothing_that_is_slow_and_not_needed(tmp_path):
    listing = "import json, sys, scale_callbacks; print(json.dumps(sorted(sys.modules)))"
    loaded = {name.partition(".")[0] for name in json.loads(run(listing, tmp_path)[1])}
    assert "numpy" in loaded
    assert not loaded & {
        "scipy",
        "rich",
        "typer",
        "jinja2",
        "matplotlib",
        "torch",
        "lightning",
        "mlflow",
        "hashlib",
    }


@pytest.mark.slow
def test_the_import_takes_less_than_a_fifth_more_than_numpy_and_50_ms(tmp_path):
    numpy, package = [], []
    for turn in range(10):
        for code, times in (("import numpy", numpy), ("import scale_callbacks", package)):
            spent = run(code, tmp_path)[0]
            if turn:  # the first compiles
                times.append(spent)
    assert statistics.median(package) < 1.2 * statistics.median(numpy) + 50.0
