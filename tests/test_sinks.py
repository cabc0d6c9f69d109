import copy
import io
import pickle

import pytest
from rich.console import Console

from scale_callbacks import ConsoleSink, JsonlSink, LossForecaster, Monitor
from scale_callbacks.sinks import _digits


def printed(schedule, losses, **options):
    out = io.StringIO()
    monitor = Monitor(
        LossForecaster(schedule),
        sinks=[ConsoleSink(Console(file=out, width=200), **options)],
        name="train_loss",
    )
    for step, loss in enumerate(losses, start=1):
        monitor.observe(step, loss)
    monitor.close()
    return out.getvalue().splitlines()


def test_the_console_shows_one_line_a_tenth_of_the_plan(schedule, losses):
    lines = printed(schedule, losses)
    assert len(lines) == 10
    assert len(set(lines)) == 10
    assert lines[0].startswith("train_loss at step 1,000: ")
    assert "90% interval" in lines[0]
    assert lines[-1].endswith("seen to step 1,000")
    assert len(printed(schedule, losses, parts=2)) < len(lines)


def test_the_console_says_what_went_wrong(schedule, losses):
    losses = losses.copy()
    losses[10] = float("nan")
    assert "1 x train_loss was not finite and left out" in printed(schedule, losses)


def test_parts_below_one_are_refused():
    with pytest.raises(ValueError, match="parts=0"):
        ConsoleSink(parts=0)


def test_numbers_are_shown_to_the_digits_their_interval_is_worth():
    assert [_digits(width) for width in (2.0, 0.2, 0.02, 0.002)] == [3, 3, 4, 5]


def test_an_open_file_sink_can_be_copied_and_pickled(schedule, losses, tmp_path):
    sink = JsonlSink(tmp_path / "a.jsonl")
    monitor = Monitor(LossForecaster(schedule), sinks=[sink])
    for step, loss in enumerate(losses[:100], start=1):
        monitor.observe(step, loss)
    for twin in (copy.deepcopy(sink), pickle.loads(pickle.dumps(sink))):
        assert twin.path == sink.path
    monitor.close()
