"""The journal: what it holds is sent once, in order and with its own times, whatever happened before."""

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from scale_callbacks.integrations import _mlflow_journal as jn
from scale_callbacks.integrations._mlflow_journal import Entry, Journal, held, read_journal
from scale_callbacks.integrations._mlflow_shelf import journal_folder, journals_of, written_elsewhere
from scale_callbacks.integrations._mlflow_text import public_address

ROOT = Path(__file__).parents[2]


def entry(i):
    return Entry(1_700_000_000_000 + i, i, {"a": i / 7, "b": 1e-300}, {"t": "ü; \n\u2028"})


def read(path):
    with path.open("rb") as file:
        return read_journal(file)


def in_another_process(code, *args, **options):
    code = textwrap.dedent(code)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], env=environ, **options)


def test_what_was_written_is_read_back_to_the_bit(tmp_path):
    journal = Journal(tmp_path / "deep" / "er", {"store": "s", "run_id": "r"})
    for i in range(5):
        assert journal.append(entry(i)) == i + 1
    journal.say(settings={"x": "1"})
    journal.mark(2)
    contents = read(journal.path)
    assert contents.entries == tuple(entry(i) for i in (2, 3, 4))
    assert contents.head == {"store": "s", "run_id": "r", "settings": {"x": "1"}}
    assert (contents.last, contents.broken) == (5, 0)
    journal.close(remove=False)


def test_only_its_owner_may_read_it(tmp_path):
    journal = Journal(tmp_path / "j", {"run_id": "r"})
    journal.append(entry(1))
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "j").stat().st_mode) == 0o700
    journal.close(remove=True)
    assert list((tmp_path / "j").iterdir()) == []


@pytest.mark.parametrize("run_id", ["../../up", "/etc/passwd", "a/b", "..", "", "x" * 500, "a\x00b\n*?[]"])
def test_a_run_s_name_cannot_lead_out_of_the_folder(tmp_path, run_id):
    journal = Journal(tmp_path / "j", {"run_id": run_id, "token": "../../t"})
    journal.append(entry(1))
    journal.say(run_id=run_id)
    assert [path.name for path in tmp_path.iterdir()] == ["j"]
    assert journal.path.parent == tmp_path / "j"
    assert journal.path.is_file()
    journal.close(remove=False)


def test_it_is_named_after_the_run_once_that_has_an_id(tmp_path):
    journal = Journal(tmp_path, {"token": "abc"})
    journal.append(entry(1))
    assert journal.path.name.startswith("new-abc.")
    journal.say(run_id="r1", own=True)
    journal.append(entry(2))
    journal.close(remove=False)
    (path,) = journals_of(tmp_path, "r1")
    assert path.name.startswith("r1.")
    assert len(read(path).entries) == 2


def test_lines_cut_off_or_broken_are_passed_over_and_counted(tmp_path):
    journal = Journal(tmp_path, {"run_id": "r"})
    for i in range(3):
        journal.append(entry(i))
    path = journal.path
    journal.close(remove=False)
    lines = path.read_bytes().splitlines(keepends=True)
    rubbish = [b"\xff\xfe\n", b"[]\n", b'"x"\n', b'{"n": 9}\n', b'{"n": 9, "entry": {"step": "x"}}\n', b"\n"]
    bad = json.dumps({"n": 9, "entry": {"milliseconds": 1, "step": 1, "metrics": {"a": 1e999}, "tags": {}}})
    path.write_bytes(b"".join([*lines[:2], *rubbish, bad.encode() + b"\n", *lines[2:-1], lines[-1][:-20]]))
    contents = read(path)
    assert contents.entries == (entry(0), entry(1))
    assert contents.broken == 7


def test_its_size_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(jn, "LIMIT", 5000)
    journal = Journal(tmp_path, {"run_id": "r"})
    n = 0
    while journal.path is None or journal.path.stat().st_size < 4800:
        n = journal.append(entry(n))
    with pytest.raises(OSError, match="5,000 bytes"):
        journal.append(entry(n))
    assert journal.path.stat().st_size <= 5000
    journal.close(remove=True)


def test_what_was_sent_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr(jn, "COMPACT", 1000)
    monkeypatch.setattr(jn, "LIMIT", 5000)
    journal = Journal(tmp_path, {"run_id": "r", "store": "s"})
    for i in range(1000):
        journal.mark(journal.append(entry(i)))
    last = journal.append(entry(1000))
    contents = read(journal.path)
    assert contents.head == {"run_id": "r", "store": "s"}
    assert (contents.entries, contents.last) == ((entry(1000),), last)
    journal.close(remove=True)


def test_a_full_disk_leaves_a_journal_that_can_be_read(tmp_path):
    code = """
        import resource, signal, sys
        from scale_callbacks.integrations._mlflow_journal import Entry, Journal
        from pathlib import Path
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        journal = Journal(Path(sys.argv[1]), {"run_id": "r"})
        failed = 0
        for i in range(20):
            try:
                journal.append(Entry(i, i, {"a": 1.0}, {}))
            except OSError:
                failed += 1
        assert 0 < failed < 20, failed
        print(20 - failed)
    """
    process = in_another_process(code, tmp_path, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=60)
    (path,) = tmp_path.iterdir()
    contents = read(path)
    assert [e.step for e in contents.entries] == list(range(int(out)))


def test_a_journal_being_written_is_left_alone_and_free_after_a_kill(tmp_path):
    code = """
        import sys, time
        from pathlib import Path
        from scale_callbacks.integrations._mlflow_journal import Entry, Journal
        journal = Journal(Path(sys.argv[1]), {"run_id": "r"})
        journal.append(Entry(1, 1, {"a": 1.0}, {}))
        print("written", flush=True)
        time.sleep(60)
    """
    process = in_another_process(code, tmp_path, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"written\n"
        (path,) = journals_of(tmp_path, "r")
        with held(path) as opened:
            assert opened is None
        assert written_elsewhere(tmp_path, "r")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    with held(path) as (file, removable):
        assert removable
        assert len(read_journal(file).entries) == 1
    assert not written_elsewhere(tmp_path, "r")


def test_this_process_s_own_journal_is_no_earlier_one(tmp_path):
    journal = Journal(tmp_path, {"run_id": "r"})
    journal.append(entry(1))
    assert journals_of(tmp_path, "r") == []
    with held(journal.path) as opened:
        assert opened is None
    assert not written_elsewhere(tmp_path, "r")
    path = journal.path
    journal.close(remove=False)
    assert journals_of(tmp_path, "r") == [path]


def test_a_journal_on_a_medium_that_cannot_be_written_is_still_read(tmp_path, monkeypatch):
    journal = Journal(tmp_path, {"run_id": "r"})
    journal.append(entry(1))
    path = journal.path
    journal.close(remove=False)
    real = Path.open

    def read_only(self, mode="r", *args, **options):
        if "+" in mode:
            raise OSError(30, "Read-only file system")
        return real(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", read_only)
    with held(path) as (file, removable):
        assert not removable
        assert len(read_journal(file).entries) == 1


def test_journals_are_found_oldest_first(tmp_path):
    made = []
    for created in (3.0, 1.0, 2.0):
        journal = Journal(tmp_path, {"run_id": "r", "created": created})
        journal.append(entry(1))
        made.append((created, journal.path))
        journal.close(remove=False)
    assert journals_of(tmp_path, "r") == [path for _, path in sorted(made)]
    assert journals_of(tmp_path, "other") == []


def test_the_folder_is_where_the_environment_says(tmp_path):
    home = Path("~").expanduser()
    assert journal_folder({}) == home / ".local" / "state" / "scale-callbacks" / "mlflow"
    assert journal_folder({"XDG_STATE_HOME": "/x"}) == Path("/x/scale-callbacks/mlflow")
    assert journal_folder({"SCALE_CALLBACKS_JOURNAL": "rel"}) == Path.cwd() / "rel"
    assert journal_folder({"SCALE_CALLBACKS_JOURNAL": " Off "}) is None


@pytest.mark.parametrize(
    ("uri", "written"),
    [
        ("http://ann:hunter2@h:5000", "http://h:5000"),
        ("https://ann:a@b/hunter2@h/p?token=hunter2", "https://h/p?token=***"),
        ("postgresql+psycopg://ann:hunter2@h/db", "postgresql+psycopg://h/db"),
        ("sqlite:////data/me@home/x.db", "sqlite:////data/me@home/x.db"),
        ("databricks://profile", "databricks://profile"),
        ("databricks", "databricks"),
    ],
)
def test_addresses_are_written_without_secrets(uri, written):
    assert public_address(uri) == written


def test_addresses_of_files_hold_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert public_address("sqlite:///x.db") == f"sqlite:///{tmp_path}/x.db"
    assert public_address("mlruns") == f"{tmp_path}/mlruns"


def test_an_entry_is_written_in_well_under_a_millisecond(tmp_path):
    journal = Journal(tmp_path, {"run_id": "r"})
    big = Entry(1, 1, {f"metric/{i}": i / 7 for i in range(12)}, {f"tag.{i}": "x" * 50 for i in range(12)})
    begun = time.process_time()
    for _ in range(200):
        journal.append(big)
    assert (time.process_time() - begun) / 200 < 1e-3
    journal.close(remove=True)
