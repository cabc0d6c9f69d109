"""Files that are no logs, or damaged ones: an error in words, or a log; never anything else."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scale_callbacks.logs import read_log
from tests.strategies import damages

ROWS = [{"step": i, "loss": 3.0 - 0.01 * i, "learning_rate": 1e-3, "epoch": i / 50} for i in range(1, 60)]
CSV = "step,loss,lr\n" + "".join(f"{row['step']},{row['loss']},{row['learning_rate']}\n" for row in ROWS)
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
STATE = {"global_step": 59, "max_steps": 100, "log_history": ROWS}
WHOLE = {
    "log.csv": CSV.encode(),
    "log.jsonl": JSONL.encode(),
    "trainer_state.json": json.dumps(STATE).encode(),
}
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def read(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    try:
        log = read_log(str(path), metric="loss")
    except (ValueError, OSError) as refused:
        told = str(refused)
    else:
        assert np.isfinite(log.steps).all()
        assert (np.diff(log.steps) > 0).all()
        return
    assert told.strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@st.composite
def spoiled(draw):
    """A log with a few of its bytes changed, doubled, or left out."""
    name = draw(st.sampled_from(sorted(WHOLE)))
    content = bytearray(WHOLE[name])
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(content) - 1))
        kind = draw(st.sampled_from(["change", "cut", "double", "insert"]))
        if kind == "change":
            content[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at : at + draw(st.integers(1, 200))]
        elif kind == "double":
            content[at:at] = content[at : at + 100]
        else:
            content[at:at] = draw(st.binary(max_size=20))
        content = content or bytearray(b"x")
    return name, bytes(content)


def test_the_logs_that_are_spoiled_here_are_logs(folder):
    for name, content in WHOLE.items():
        read(folder, name, content)
        assert len(read_log(str(folder / name), metric="loss").steps) == len(ROWS)


@FEW
@given(spoiled())
def test_a_spoiled_log_is_refused_in_words_or_read(folder, log):
    read(folder, *log)


@FEW
@given(st.sampled_from([*WHOLE, "events.out.tfevents.1"]), st.binary(max_size=300))
def test_bytes_of_any_kind_are_refused_in_words_or_read(folder, name, content):
    read(folder, name, content)


@FEW
@given(damages())
def test_a_damaged_trainer_state_is_refused_in_words_or_read(folder, damage):
    read(folder, "trainer_state.json", json.dumps(damage(json.loads(json.dumps(STATE)))).encode())


@pytest.mark.slow
@settings(FEW, max_examples=1000, database=None)
@given(spoiled())
def test_thousands_of_spoiled_logs_are_refused_in_words_or_read(folder, log):
    read(folder, *log)
