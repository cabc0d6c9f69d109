"""A short soak: trainings that are killed and resumed forecast as if they had never stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import soak

ROOT = Path(__file__).parents[1]


def write(folder: Path, *values: float) -> Path:
    folder.mkdir()
    lines = [
        json.dumps({"name": "loss", "step": step, "forecast": value}) for step, value in enumerate(values)
    ]
    folder.joinpath("log.jsonl").write_text("\n".join(lines) + "\n")
    folder.joinpath("end.json").write_text("{}")
    return folder


def test_comparison_counts_forecasts_that_differ_or_are_missing(tmp_path: Path) -> None:
    alone = write(tmp_path / "alone", 1.0, 2.0, 3.0)
    assert soak.compare(alone, write(tmp_path / "same", 1.0, 2.0, 3.0))["differences"] == 0
    assert soak.compare(alone, write(tmp_path / "other", 1.0, 2.0 + 1e-15, 3.0))["differences"] == 1
    assert soak.compare(alone, write(tmp_path / "short", 1.0, 2.0))["differences"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lightning", "transformers"])
def test_killed_and_resumed_trainings_forecast_as_one_left_alone(kind: str) -> None:
    command = [sys.executable, "tests/soak.py", "--kills", "4", "--only", kind]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kind}: 4 kills" in done.stdout
    assert ", 0 differences" in done.stdout
