import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

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


@pytest.fixture
def recording(monkeypatch):
    """The Lightning callback's monitor keeps what it was told, and forecasts some 15 times a run."""
    from tests.integrations.lightning_runs import Recording

    monkeypatch.setattr("scale_callbacks.integrations.lightning.Monitor", Recording)
    monkeypatch.setattr("scale_callbacks.due.LINEAR", 1 / 8)
    monkeypatch.setattr("scale_callbacks.due.RATIO", 1.5)


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


class TrackingServer:
    """A real `mlflow server` on loopback that asks for a password; stopped with all its processes."""

    user, password = "ann", "hunter2-is-secret"

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder, self.address = folder, f"http://127.0.0.1:{port}"
        settings = folder / "auth.ini"
        settings.write_text(
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
            f"admin_username = {self.user}\nadmin_password = {self.password}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        command += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_") or "TELEMETRY" in k}
        environ |= {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": "for tests"}
        environ |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven more processes
        with open(folder / "server.log", "w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, cwd=folder, env=environ
            )

    def await_health(self):
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=2).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                assert time.monotonic() < deadline, "the server did not come up"
                time.sleep(0.5)

    def warm_up(self):
        """Its first answers take seconds."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", self.user)
            patch.setenv("MLFLOW_TRACKING_PASSWORD", self.password)
            client = self.client()
            run_id = client.create_run(client.create_experiment("warm-up")).info.run_id
            client.log_metric(run_id, "a", 1.0)
            client.get_metric_history(run_id, "a")
            client.search_runs(["0"])
            client.log_text(run_id, "a", "a.txt")

    def stop(self):
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)

    def client(self):
        """A client that knows the password, by the variables that `known` sets."""
        from mlflow import MlflowClient

        return MlflowClient(self.address)


@pytest.fixture(scope="session")
def _server_process(tmp_path_factory):
    pytest.importorskip("flask_wtf", reason="MLflow's own way of asking for passwords needs Flask-WTF")
    server = TrackingServer(tmp_path_factory.mktemp("server"))
    try:
        server.await_health()
        server.warm_up()
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(_server_process, journals, monkeypatch):
    """The session's tracking server; its user and password in the environment, as MLflow wants them."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", _server_process.user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", _server_process.password)
    return _server_process


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
    monkeypatch.setattr("scale_callbacks.due.LINEAR", 0.1)
    monkeypatch.setattr("scale_callbacks.due.RATIO", 2.0)


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
