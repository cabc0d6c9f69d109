"""What logging to an MLflow server on loopback adds to a training step, by everything it does."""

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

from scale_callbacks import LossForecaster, Monitor, Schedule
from scale_callbacks.integrations._mlflow_open import Target
from scale_callbacks.integrations.mlflow import MlflowSink

STEPS = 1500
PAIRS = 3  # trainings with and without the sink, in turn


@contextlib.contextmanager
def tracking_server(folder):
    """A real `mlflow server` on SQLite; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", f"{folder}/artifacts"]
    environ = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven more processes
    with open(f"{folder}/server.log", "w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, cwd=folder, env=environ
        )
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"no server: {Path(folder, 'server.log').read_text()[-500:]}"
                    ) from None
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


class Timed:
    """Hands records on to a sink, and times that."""

    inline = True

    def __init__(self, sink):
        self.sink, self.times = sink, []

    def write(self, record, summary):
        begun = time.thread_time()
        self.sink.write(record, summary)
        self.times.append(time.thread_time() - begun)

    def close(self, summary):
        self.sink.close(summary)


def train(sinks):
    """A training of steps of about a millisecond.

    Returns:
        Seconds of each step, of `observe` where nothing is due, of closing; processor time of all threads.
    """
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(160, 160))
    monitor = Monitor(LossForecaster(Schedule.cosine(1e-3, STEPS)), sinks=sinks, name="train_loss")
    took, idle, last, spent = [], [], time.perf_counter(), time.process_time()
    for step in range(1, STEPS + 1):
        for _ in range(4):
            weights = np.tanh(weights @ weights / 160)
        due = monitor.due(step)
        begun = time.perf_counter()
        monitor.observe(step, 2.0 + (step / STEPS) ** -0.4 + float(weights[0, 0]) * 1e-3)
        now = time.perf_counter()
        if not due:
            idle.append(now - begun)
        took.append(now - last)
        last = now
    begun, spent = time.perf_counter(), time.process_time() - spent
    monitor.close()
    return took, idle, time.perf_counter() - begun, spent


def measure():
    """Everything here, by name."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with tempfile.TemporaryDirectory() as folder, tracking_server(folder) as address:
        os.environ["SCALE_CALLBACKS_JOURNAL"] = f"{folder}/journals"
        runs = {"with": [], "without": []}
        writes, closing = [], []
        for turn in range(PAIRS + 1):
            sink = MlflowSink.starting(Target(address))
            sink.open(wait=60.0)
            timed = Timed(sink)
            seen = train([timed])
            assert (sink.faults, sink.dropped) == (0, 0), (sink.faults, sink.dropped)
            plain = train([])
            if turn == 0:
                continue  # the first pays for imports
            runs["with"].append(seen)
            runs["without"].append(plain)
            writes += timed.times
            closing.append(seen[2])
        pairs = list(zip(runs["with"], runs["without"], strict=True))
        found = {
            "training step without MLflow, ms": 1e3
            * statistics.median(statistics.median(run[0]) for run in runs["without"]),
            "added per training step, processor time of all threads, ms": 1e3
            * statistics.median((a[3] - b[3]) / STEPS for a, b in pairs),
            "added per training step, wall time (a busy machine shows), ms": 1e3
            * statistics.median((sum(a[0]) - sum(b[0])) / STEPS for a, b in pairs),
            "write() per training step, processor time, ms": 1e3 * sum(writes) / PAIRS / STEPS,
            "write() of one forecast, median, us": 1e6 * statistics.median(writes),
            "write() of one forecast, worst, us": 1e6 * max(writes),
            "close(), everything sent, picture and report, s": statistics.median(closing),
        }
        for name, some in runs.items():
            found[f"observe with nothing due, {name} the sink, us"] = 1e6 * statistics.median(
                statistics.median(run[1]) for run in some
            )
        return found
