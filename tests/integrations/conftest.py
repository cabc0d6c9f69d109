import contextlib
import gc
import os
import signal
import sys

import pytest

from tests.integrations.ranks import launch

# Before mlflow is imported anywhere: it would report its use over the network.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(autouse=True)
def journals(monkeypatch, tmp_path):
    """No store and no run from the tester's environment, nor from the test before (a logger sets both).

    The journals, which would go to the tester's home, go to the folder that this gives.
    """
    for name in [name for name in os.environ if name.startswith("MLFLOW_") and "TELEMETRY" not in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SCALE_CALLBACKS_JOURNAL", str(tmp_path / "journals"))
    yield tmp_path / "journals"
    if "mlflow" in sys.modules:
        mlflow = sys.modules["mlflow"]
        while mlflow.active_run():
            mlflow.end_run()
        mlflow.set_tracking_uri(None)


@pytest.fixture(scope="session")
def store_uri(tmp_path_factory):
    """An MLflow database, made once: a new one takes some five seconds of migrations."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    with contextlib.chdir(folder):  # where a new database puts the folder of its artifacts
        MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="session")
def store(store_uri):
    from mlflow import MlflowClient

    return MlflowClient(store_uri)


@pytest.fixture(scope="module")
def quick_collections():
    """A training of Transformers collects garbage: half a second among the modules loaded by now."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def few_forecasts(monkeypatch):
    """Each forecast of a loss costs some 50 ms: ten a run are enough for what is tested here."""
    monkeypatch.setattr("scale_callbacks.monitor.LINEAR", 0.1)
    monkeypatch.setattr("scale_callbacks.monitor.RATIO", 2.0)


@pytest.fixture(scope="session")
def lightning_pair(tmp_path_factory):
    """Folder and results of two real processes that train with Lightning's DDP in all of the ways tested."""
    folder = tmp_path_factory.mktemp("ddp")
    return folder, launch("tests.integrations.ddp_run", 2, folder)


@pytest.fixture(scope="session")
def torch_pair(tmp_path_factory):
    """Results of two real processes that agree, and train plain torch loops; the second dies in the end."""
    folder = tmp_path_factory.mktemp("torch")
    return launch("tests.integrations.torch_ranks_run", 2, folder, codes=[0, -signal.SIGKILL])


@pytest.fixture(scope="session")
def torch_four(tmp_path_factory):
    """The same with four."""
    folder = tmp_path_factory.mktemp("torch")
    return launch("tests.integrations.torch_ranks_run", 4, folder, codes=[0, 0, 0, -signal.SIGKILL])
