import os

import pytest

# Before mlflow is imported anywhere: it would report its use over the network.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(scope="session")
def store_uri(tmp_path_factory):
    """An MLflow database, made once: a new one takes some five seconds of migrations."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="session")
def store(store_uri):
    from mlflow import MlflowClient

    return MlflowClient(store_uri)
