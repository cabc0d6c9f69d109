"""Whether there is a server where an MLflow store is said to be."""

from __future__ import annotations

import socket
import threading
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PATIENCE = 2.0  # seconds for a connection


def reachable(address: str, *, patience: float = PATIENCE) -> bool:
    """Tell whether a server takes connections, in bounded time; an unknown name resolves slowly.

    True where that cannot be told: for stores that are no web server, and where a proxy stands between.
    """
    parts = urlsplit(address or "")
    if not is_web(address) or _by_proxy(parts.scheme, parts.hostname or ""):
        return True
    answered: list[bool] = []
    asking = threading.Thread(target=lambda: answered.append(_connects(address, patience)), daemon=True)
    asking.start()
    asking.join(patience + 1.0)
    return bool(answered and answered[0])


def is_web(address: str | None) -> bool:
    """Tell a tracking server's address from that of a database or a folder."""
    return urlsplit(address or "").scheme in ("http", "https")


def _connects(address: str, patience: float) -> bool:
    try:
        parts = urlsplit(address)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=patience).close()
    except (OSError, ValueError):
        return False
    return True


def _by_proxy(scheme: str, host: str) -> bool:
    proxies = getproxies()
    return bool(proxies.get(scheme) or proxies.get("all")) and not proxy_bypass(host)
