import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "measure_on_gpu.py"


def run(*arguments, folder):
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(SCRIPT.parents[1]),
    }
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.slow
def test_the_gpu_measurement_runs_on_a_cpu_where_it_is_tiny_and_says_so_where_it_is_not(tmp_path):
    done = run("--tiny", "--steps", 20, "--pairs", 1, "--out", "new/result.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    assert result["ms a step with"] > 0 < result["ms a step without"]
    assert result["forecasts a run"] > 0
    assert result["waits for the GPU per 1,000 steps with"] is None
    refused = run(folder=tmp_path)
    assert refused.returncode != 0
    assert "no GPU here" in refused.stderr
