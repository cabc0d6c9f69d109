"""Two real processes with DDP over gloo stop together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "tests.integrations.ddp_saturation"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            cwd=ROOT,
            env=environ | {"LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_ranks_stop_at_one_step_for_one_reason(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["sound"] for rank in ranks)
    assert first == second
    assert first["reason"] == "saturated"
    assert first["steps"] == first["stopped"] < 200


def test_rank_that_would_go_on_stops_with_the_other(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["deaf"] for rank in ranks)
    assert first["steps"] == second["steps"] == ranks[0]["sound"]["steps"]
    assert second["stopped"] == first["stopped"]
