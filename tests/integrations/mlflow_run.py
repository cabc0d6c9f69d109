"""A training in a process of its own, for tests that kill it: `mlflow_run.py STEPS [KILL_AT]`.

Reads where to log from the environment; goes on from `checkpoint.json` in its folder where there is one, and
leaves one there at every 50th step. Prints its run's id, the step of each forecast, and at the end "closed".
"""

import json
import os
import signal
import sys
from pathlib import Path

from scale_callbacks import LossForecaster, Monitor, Schedule
from scale_callbacks.integrations.mlflow import resolve_sink

HORIZON = 400


def loss(step):
    return 2.0 + (step / HORIZON) ** -0.4


def main(steps, kill_at=0):
    path = Path("checkpoint.json")
    saved = json.loads(path.read_text()) if path.exists() else {"step": 0, "sink": None}
    sink = resolve_sink(resume=saved["sink"])
    monitor = Monitor(LossForecaster(Schedule.constant(1e-3, HORIZON)), sinks=[sink], name="train_loss")
    if saved["step"]:
        monitor.load_state_dict(saved["monitor"])
    for step in range(saved["step"] + 1, steps + 1):
        monitor.observe(step, loss(step))
        if step % 50 == 0:
            state = {"step": step, "sink": sink.state_dict(), "monitor": monitor.state_dict()}
            path.write_text(json.dumps(state))
        if step == kill_at:
            steps_made = [point.step for point in monitor.history]
            print(json.dumps({"run_id": sink.run_id, "steps": steps_made}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    if steps < HORIZON:
        print(json.dumps({"run_id": sink.run_id}), flush=True)
        return  # without closing
    monitor.close()
    steps_made = [point.step for point in monitor.history]
    print(json.dumps({"run_id": sink.run_id, "steps": steps_made, "dropped": sink.dropped}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
