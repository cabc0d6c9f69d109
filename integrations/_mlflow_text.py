"""Texts that go to an MLflow store, to a log or to a file: names as MLflow takes them, and no secrets."""

from __future__ import annotations

import os
import re

from scale_callbacks._text import fault_text, without_secrets

__all__ = ["fault_text", "file_label", "is_local", "mlflow_key", "public_address", "without_secrets"]

LOCAL = ("sqlite:", "file:")  # schemes of addresses without a server


def is_local(uri: str) -> bool:
    """Tell a store on this machine's disk from one behind a server."""
    return uri.startswith(LOCAL) or ("://" not in uri and not uri.startswith(("databricks", "uc")))


def public_address(uri: str) -> str:
    """Write a store's address down so that it can be found again from any folder, without its secrets.

    >>> public_address("https://ann:pa@ss@host:5000/api?token=x"), public_address("sqlite:////data/a@b.db")
    ('https://host:5000/api?token=***', 'sqlite:////data/a@b.db')
    """
    if not is_local(uri):
        return without_secrets(uri).replace("://***@", "://")
    scheme, path = ("sqlite:///", uri[10:]) if uri.startswith("sqlite:///") else ("", uri)
    in_full = path.startswith(("/", *LOCAL)) or path == ":memory:"
    return scheme + (path if in_full else os.path.abspath(path))


def mlflow_key(text: str) -> str:
    """Write a name in the characters that MLflow takes, and not as a path that leads anywhere else.

    >>> mlflow_key("../loss@1"), mlflow_key("/")
    ('loss_1', '_')
    """
    clean = re.sub(r"[^\w. :/-]", "_", text, flags=re.ASCII)
    parts = [part for part in clean.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:250] or "_"


def file_label(text: str) -> str:
    """Write an id as part of a file's name that cannot leave its folder.

    >>> file_label("../../etc/passwd"), file_label("3f2a")
    ('______etc_passwd', '3f2a')
    """
    return re.sub(r"[^\w-]", "_", text, flags=re.ASCII)[:80] or "_"
