"""No pickle, no eval, no way out of a folder, no secret in a log."""

import ast
import importlib.util
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scale_callbacks import LossForecaster, Monitor, Schedule, testing
from scale_callbacks._text import without_secrets
from scale_callbacks.reward_runs import read_reward_runs
from scale_callbacks.runs import read_runs

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("scale_callbacks/**/*.py"), *ROOT.glob("integrations/*.py")])
FORBIDDEN = {"eval", "exec", "compile", "__import__"}
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "subprocess"}


def names(tree):
    """Modules imported, functions called by a bare name, and calls of `load` with their keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], "import") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0], "import"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id, "call"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
            owner = getattr(node.func.value, "id", "")
            yield f"{owner}.load({','.join(str(k.arg) for k in node.keywords)})", "load"


def test_nothing_in_the_package_unpickles_or_evaluates():
    assert len(SOURCES) > 60
    for path in SOURCES:
        for name, kind in names(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (kind == "call" and name in FORBIDDEN), f"{path} calls {name}"
            assert not (kind == "import" and name in UNSAFE), f"{path} imports {name}"
            if name.startswith("np.load("):
                assert "allow_pickle" in name, f"{path} loads arrays without allow_pickle=False"
            if name.startswith("torch.load("):
                assert "weights_only" in name, f"{path} loads tensors without weights_only=True"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "a/b/../../../secret"])
@pytest.mark.parametrize("read", [lambda folder: read_runs([folder]), read_reward_runs])
def test_a_run_s_name_cannot_lead_out_of_its_folder(name, read, tmp_path):
    (tmp_path / "secret.csv").write_text("step,lr,loss,reward\n1,1,1,1\n2,1,1,1\n")
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "runs.jsonl").write_text(json.dumps({"run": name}) + "\n")
    with pytest.raises(ValueError, match="leads out of"):
        read(folder)


def test_a_link_out_of_the_folder_is_refused_too(tmp_path):
    (tmp_path / "secret.csv").write_text("step,lr,loss\n1,1,1\n2,1,1\n")
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "run.csv").symlink_to(tmp_path / "secret.csv")
    (folder / "runs.jsonl").write_text(json.dumps({"run": "run"}) + "\n")
    with pytest.raises(ValueError, match="leads out of"):
        read_runs([folder])


@pytest.mark.parametrize("read", [lambda path: read_runs([path]), read_reward_runs])
def test_a_bundle_with_pickled_objects_is_refused(read, tmp_path):
    path = tmp_path / "runs.npz"
    np.savez(path, meta=np.array([{"run": "a"}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read(path)


SECRETS = [
    "https://ann:s3cr3t@host/api",
    "no answer: mysql://root:s3cr3t@db:3306/mlflow (tried twice)",
    "https://host/api?token=s3cr3t&x=1",
    "Authorization: Bearer s3cr3t",
    "{'password': 's3cr3t'}",
    "MLFLOW_TRACKING_TOKEN=s3cr3t",
    'api_key: "s3cr3t"',
    "https://bucket/x?X-Amz-Signature=s3cr3t",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_left_out_of_what_is_logged_counted_and_saved(text, caplog):
    assert "s3cr3t" not in without_secrets(text)
    plan = Schedule.cosine(1e-3, 40)
    sink = testing.FAULTS["a sink raises"].sinks()[0]
    sink.fault = ConnectionError(text)
    monitor = Monitor(LossForecaster(plan), sinks=[sink])
    with caplog.at_level(logging.WARNING):
        for step, loss in enumerate(testing.losses_of(plan), start=1):
            monitor.observe(step, loss)
        monitor.close()
    assert "RaisingSink failed to write" in caplog.text
    assert "s3cr3t" not in caplog.text
    assert "s3cr3t" not in json.dumps([dict(monitor.warnings), monitor.state_dict()])


def audit_with(monkeypatch, capsys, answer):
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=answer))
    return module.main(), capsys.readouterr().out


def test_the_audit_fails_on_a_known_hole_and_goes_on_where_nobody_answers(monkeypatch, capsys):
    hole = {"id": "PYSEC-1", "fix_versions": ["2.0"]}
    found = {"dependencies": [{"name": "a", "version": "1.0", "vulns": [hole]}]}
    status, text = audit_with(monkeypatch, capsys, json.dumps(found))
    assert status == 1
    assert "a 1.0: PYSEC-1, fixed in 2.0" in text
    clean = {
        "dependencies": [{"name": "a", "version": "1.0", "vulns": []}, {"name": "b", "skip_reason": "?"}]
    }
    status, text = audit_with(monkeypatch, capsys, json.dumps(clean))
    assert status == 0
    assert "1 of 2 packages" in text
    assert audit_with(monkeypatch, capsys, "ConnectionError")[0] == 0
