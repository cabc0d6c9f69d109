"""A door before a server, for tests: it can be open, shut, slow, stuck, failing, or lose the answers."""

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Gate:
    """Forwards HTTP requests to `upstream`, as `mode` says.

    "open" forwards, "slow" waits 0.3 s before, "stuck" takes requests and never answers, "failing" answers
    500, "lossy" forwards and drops the connection instead of answering; `shut()` refuses connections.
    """

    def __init__(self, upstream=""):
        self.upstream = upstream
        self.mode = "open"
        self.requests = []
        self._server = None
        self._released = threading.Event()
        self.port = 0
        self.open()
        self.address = f"http://127.0.0.1:{self.port}"

    def open(self, mode="open"):
        self.mode = mode
        if self._server is None:
            self._server = _Server(("127.0.0.1", self.port), _Handler)
            self._server.gate = self
            self.port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def shut(self):
        self.mode = "shut"
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self):
        self._released.set()
        self.shut()

    def stay_stuck(self):
        self._released.wait(120)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def handle_error(self, request, client_address):
        pass  # a client that has given up


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def _handle(self):
        gate = self.server.gate
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        gate.requests.append((self.command, self.path))
        if gate.mode == "stuck":
            gate.stay_stuck()
        if gate.mode == "failing":
            self.send_error(500)
            return
        if gate.mode == "slow":
            time.sleep(0.3)
        if gate.mode not in ("open", "slow", "lossy"):
            return
        status, headers, answer = self._forward(gate, body)
        if gate.mode == "lossy" and self.command == "POST" and "log-batch" in self.path:
            return
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _forward(self, gate, body):
        upstream = urlsplit(gate.upstream)
        connection = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "host")}
        connection.request(self.command, self.path, body or None, headers)
        response = connection.getresponse()
        answer = response.status, response.getheaders(), response.read()
        connection.close()
        return answer

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def log_message(self, *args):
        pass
