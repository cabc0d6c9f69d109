import json
import struct
from collections import Counter

import numpy as np
import pytest

from scale_callbacks.logs import open_source, read_log
from scale_callbacks.logs.log import tidy
from scale_callbacks.logs.names import UnknownNameError

STEPS = np.arange(1, 101)
LOSSES = (2.0 + STEPS**-0.5).round(6)
RATES = np.full(100, 1e-3)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def csv_of(header="step,loss,lr", rows=None):
    rows = zip(STEPS, LOSSES, RATES, strict=True) if rows is None else rows
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def jsonl_of():
    rows = ({"step": int(s), "loss": float(v), "lr": 1e-3} for s, v in zip(STEPS, LOSSES, strict=True))
    return "".join(json.dumps(row) + "\n" for row in rows)


def trainer_state():
    history = []
    for step, loss in zip(STEPS.tolist(), LOSSES.tolist(), strict=True):
        history.append(
            {"epoch": step / 50, "grad_norm": 1.0, "learning_rate": 1e-3, "loss": loss, "step": step}
        )
    history.append({"epoch": 2.0, "eval_loss": 2.2, "step": 100})
    history.append({"epoch": 2.0, "train_loss": 2.3, "train_runtime": 1.0, "step": 100})
    return {
        "epoch": 2.0,
        "global_step": 100,
        "is_hyper_param_search": False,
        "log_history": history,
        "max_steps": 100,
    }


def is_the_run(log):
    return (
        np.array_equal(log.steps, STEPS)
        and np.allclose(log.values, LOSSES)
        and np.allclose(log.rates[1], 1e-3)
    )


@pytest.mark.parametrize(
    "text",
    [
        csv_of(),
        csv_of().replace("\n", "\r\n"),
        csv_of().replace(",", "\t"),
        csv_of().replace(",", ";"),
        "\ufeff" + csv_of(),
        "\n\n" + csv_of(),
        csv_of('"step","loss","lr"'),
        csv_of("Step,Train/Loss,Learning_Rate"),
        csv_of("_step,my-run - train/loss,my-run - lr"),
        csv_of(rows=[(f'"{s}"', v, r) for s, v, r in zip(STEPS, LOSSES, RATES, strict=True)]),
        jsonl_of(),
        json.dumps([json.loads(line) for line in jsonl_of().splitlines()], indent=1),
        json.dumps(trainer_state(), indent=2),
    ],
    ids=["csv", "crlf", "tabs", "semicolons", "bom", "blank", "quoted", "names", "wandb", "cells", "jsonl",
         "json", "hf"],
)  # fmt: skip
def test_each_form_is_read(tmp_path, text):
    log = read_log(write(tmp_path / "log.txt", text))
    assert is_the_run(log)
    assert log.notes == {}


def test_lightnings_sparse_rows_are_read(tmp_path):
    rows = ["epoch,lr-AdamW,step,train_loss_step,val_loss"]
    for step, loss in zip(STEPS, LOSSES, strict=True):
        rows += [f",0.001,{step},,", f"0,,{step},{loss},"]
    rows.append("0,,100,,2.5")
    (tmp_path / "version_0").mkdir()
    write(tmp_path / "version_0" / "metrics.csv", "\n".join(rows) + "\n")
    log = read_log(str(tmp_path / "version_0"))
    assert log.name == "train_loss_step"
    assert is_the_run(log)
    assert read_log(str(tmp_path / "version_0"), metric="val_loss").values.tolist() == [2.5]


def test_a_wandb_export_hides_its_bounds(tmp_path):
    header = "Step,blue-sky-1 - train/loss,blue-sky-1 - train/loss__MIN,blue-sky-1 - train/loss__MAX"
    path = write(
        tmp_path / "wandb.csv", csv_of(header, [(s, v, v, v) for s, v in zip(STEPS, LOSSES, strict=True)])
    )
    source = open_source(path)
    assert source.names == ["blue-sky-1 - train/loss"]
    assert np.allclose(read_log(path, metric="train/loss").values, LOSSES)


def test_a_wandb_history_of_nested_objects_is_read(tmp_path):
    rows = [
        {"_step": int(s), "train": {"loss": float(v), "lr": 1e-3}} for s, v in zip(STEPS, LOSSES, strict=True)
    ]
    log = read_log(write(tmp_path / "history.jsonl", "\n".join(map(json.dumps, rows))))
    assert log.name == "train/loss"
    assert is_the_run(log)


def test_hugging_faces_train_loss_is_a_mean_over_the_steps_between(tmp_path):
    path = write(tmp_path / "trainer_state.json", json.dumps(trainer_state()))
    log = read_log(path)
    assert log.is_mean
    assert (log.planned, log.ended) == (100, True)
    assert not read_log(path, metric="eval_loss").is_mean
    assert read_log(str(tmp_path)).label == read_log(path).label  # a checkpoint's folder


@pytest.mark.parametrize("cut", [0.3, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "hf"])
def test_a_file_cut_off_in_the_middle_is_read_up_to_there(tmp_path, form, cut):
    whole = {
        "csv": csv_of(),
        "jsonl": jsonl_of(),
        "json": json.dumps([json.loads(line) for line in jsonl_of().splitlines()]),
        "hf": json.dumps(trainer_state(), indent=2),
    }[form]
    log = read_log(write(tmp_path / "log.txt", whole[: int(cut * len(whole))]))
    kept = len(log.steps)
    assert 0.7 * cut * 100 < kept <= 100 * min(1.2 * cut, 1.0)
    assert np.array_equal(log.steps, STEPS[:kept])
    assert np.allclose(log.values[:-1], LOSSES[: kept - 1])


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_what_cannot_be_read_is_counted_and_the_rest_used(tmp_path, form):
    lines = (csv_of() if form == "csv" else jsonl_of()).splitlines()
    lines[20] = "garbage"
    row = 30 if form == "csv" else 29  # after the header
    lines[row] = lines[row].replace(str(LOSSES[29]), "2.3%" if form == "csv" else '"2.3%"')
    lines[40] = ""
    log = read_log(write(tmp_path / "log.txt", "\n".join(lines)))
    assert len(log.steps) == 98
    assert np.isnan(log.values).sum() == 1
    assert any("no number" in what for what in log.notes)
    assert any("cut short" in what for what in log.notes)


def test_an_unknown_metric_is_answered_with_those_that_exist(tmp_path):
    path = write(tmp_path / "a.csv", csv_of())
    with pytest.raises(UnknownNameError, match=r"a\.csv has no 'accuracy'; it has: loss, lr"):
        read_log(path, metric="accuracy")
    with pytest.raises(UnknownNameError, match=r"--lr|has no"):
        read_log(path, rate="learning_rate")
    with pytest.raises(UnknownNameError, match="--step"):
        read_log(write(tmp_path / "b.csv", csv_of("when,loss,lr")))
    with pytest.raises(UnknownNameError, match="name one with --metric; it has: a, b"):
        read_log(write(tmp_path / "c.csv", csv_of("step,a,b")))


def test_rows_can_be_numbered(tmp_path):
    path = write(
        tmp_path / "a.csv",
        csv_of("when,loss,lr", [(1e9 + s, v, 1e-3) for s, v in zip(STEPS, LOSSES, strict=True)]),
    )
    assert is_the_run(read_log(path, step="row"))


def test_a_file_without_a_header_is_refused_with_the_remedy(tmp_path):
    path = write(tmp_path / "a.csv", csv_of().split("\n", 1)[1])
    with pytest.raises(ValueError, match=r"has no header line.*--step 1 --metric 2"):
        read_log(path)
    assert is_the_run(read_log(path, step="1", metric="2", rate="3"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", "no text file"),
        (b"step,loss\n", "no value"),
        (b"step,loss\n1,nan\n2,nan\n", "no finite value"),
        (b"step,loss\nx,1\ny,2\n", "no value with a step"),
        (b"{}\n", "no JSON object"),
        (b"[1, 2, 3]", "no JSON object"),
        (b'{"log_history": 5}', "trainer_state"),
        (b'{"log_history": []}', "empty"),
        (b"step,loss\n0.01,1\n0.02,2\n0.03,3\n", "no whole numbers"),
    ],
)
def test_what_is_no_log_is_refused_in_one_clear_line(tmp_path, content, message):
    path = tmp_path / "log"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as told:
        read_log(str(path))
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_log(str(tmp_path / "nothing.csv"))


def test_restarts_replace_what_they_repeat():
    notes = Counter()
    steps = np.array([10, 20, 30, 40, 25, 35, 45, 55.0])
    kept, values = tidy(steps, np.arange(8.0), "loss", notes)
    assert kept.tolist() == [10, 20, 25, 35, 45, 55]
    assert values.tolist() == [0, 1, 4, 5, 6, 7]
    assert sum("restarts" in what for what in notes) == 1


def test_a_stray_row_at_the_end_does_not_replace_the_run():
    notes = Counter()
    kept, values = tidy(np.array([1, 2, 3, 4, 2.0]), np.arange(5.0), "loss", notes)
    assert kept.tolist() == [1, 2, 3, 4]
    assert values.tolist() == [0, 4, 2, 3]
    assert sum(notes.values()) == 2


def test_steps_of_another_unit_are_left_out_or_refused():
    notes = Counter()
    steps = np.concatenate((STEPS, [5_000_000.0, 5_000_100.0]))
    kept, _ = tidy(steps, np.ones(102), "loss", notes)
    assert kept[-1] == 100
    assert notes["loss: step far beyond all others (another unit?), left out"] == 2
    with pytest.raises(ValueError, match="two units in one column"):
        tidy(np.concatenate((STEPS, 1e6 * STEPS)), np.ones(200), "loss", notes)


def test_metrics_logged_without_steps_are_numbered():
    notes = Counter()
    kept, _ = tidy(np.zeros(50), np.ones(50), "loss", notes)
    assert kept.tolist() == list(range(1, 51))
    assert len(notes) == 1


@pytest.fixture
def events(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path / "run")
    for step, loss in zip(STEPS.tolist(), LOSSES.tolist(), strict=True):
        writer.add_scalar("train/loss", loss, step)
        writer.add_scalar("train/lr", 1e-3, step)
    writer.add_text("note", "hello")
    writer.close()
    return tmp_path / "run"


def test_event_files_are_read(events):
    assert is_the_run(read_log(str(events)))
    (file,) = events.iterdir()
    assert is_the_run(read_log(str(file)))
    assert is_the_run(read_log(str(events.parent)))  # one run below


def test_tensors_of_tensorflow_2_are_scalars_too(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

    records = [Event(file_version="brain.Event:2")]
    for step, loss in zip(STEPS.tolist(), LOSSES.tolist(), strict=True):
        tensor = TensorProto(dtype=1, tensor_content=struct.pack("<f", loss))
        if step % 2:
            tensor = TensorProto(dtype=1, float_val=[loss])
        records.append(
            Event(step=step, summary=Summary(value=[Summary.Value(tag="epoch_loss", tensor=tensor)]))
        )
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(b"".join(framed(record.SerializeToString()) for record in records))
    log = read_log(str(path))
    assert np.allclose(log.values, LOSSES, rtol=1e-6)


def framed(data):
    return struct.pack("<Q", len(data)) + b"\0" * 4 + data + b"\0" * 4


@pytest.mark.parametrize("cut", [0.2, 0.77])
def test_an_event_file_cut_off_is_read_up_to_there(events, cut):
    (file,) = events.iterdir()
    data = file.read_bytes()
    file.write_bytes(data[: int(cut * len(data))])
    log = read_log(str(events))
    assert np.array_equal(log.steps, STEPS[: len(log.steps)])
    assert 0.5 * cut < len(log.steps) / 100 < cut + 0.1
    assert log.notes["event file damaged or cut off, read up to there"] == 1


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 some other file", framed(b"\xff\xff\xff"), framed(b"")]
)
def test_an_event_file_from_another_tool_is_refused(tmp_path, content):
    pytest.importorskip("tensorboard")
    path = tmp_path / "events.out.tfevents.123"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"TensorBoard|no scalars"):
        read_log(str(path))


def test_an_event_file_without_scalars_says_what_it_holds(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path / "run")
    writer.add_text("note", "hello")
    writer.close()
    with pytest.raises(ValueError, match="has no scalars: it holds tensor"):
        read_log(str(tmp_path / "run"))


def test_a_folder_of_several_runs_asks_for_one(events):
    (events.parent / "other").mkdir()
    (events.parent / "other" / "events.out.tfevents.1").write_bytes(b"")
    with pytest.raises(ValueError, match="several runs: other, run"):
        read_log(str(events.parent))
