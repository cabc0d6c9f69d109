"""Starts real processes that train together, and gathers what they write."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT = 240  # seconds; the machine may be busy


def launch(
    module: str, world: int, folder: Path, *arguments: str, codes: list[int] | None = None
) -> list[Any]:
    """Run a module on each of so many ranks; each writes `rank<i>.json` into the folder.

    Args:
        module: run as `python -m module folder *arguments`, with RANK, LOCAL_RANK and WORLD_SIZE set.
        world: number of processes.
        folder: where they write.
        arguments: handed on.
        codes: the exit codes they must end with, all zero by default.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(folder), *arguments],
            cwd=ROOT,
            env=environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == (codes or [0] * world), "\n".join(outputs)
    files = [folder / f"rank{rank}.json" for rank in range(world)]
    return [json.loads(file.read_text()) for file in files]
