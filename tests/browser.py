"""A headless Chromium, driven over its DevTools pipe: what a person would see and do with a page."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """One Chromium process; use it as a context manager."""

    def __init__(self, folder):
        self._ids = itertools.count(1)
        self._buffer = b""
        self.events = []
        reads, self._out = os.pipe()
        self._in, writes = os.pipe()
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        # Chromium reads commands from descriptor 3 and writes to 4.
        script = f'exec "$@" 3<&{reads} 4>&{writes}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "chromium", *command],
            pass_fds=(reads, writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.call("Browser.close", timeout=10)
        except (OSError, TimeoutError):
            pass
        finally:
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            os.close(self._in)
            os.close(self._out)

    def open(self, url, *, width=1440, height=900, dark=False, mobile=False):
        """Open a page in a tab of its own, with every request and console message recorded from the start."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if mobile else 1,
            mobile=mobile,
        )
        colours = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        page.call("Emulation.setEmulatedMedia", features=colours)
        page.call("Page.navigate", url=url)
        self.wait_for("Page.loadEventFired", session)
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return page

    def call(self, method, session=None, *, timeout=60, **params):
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while True:
            told = self._next(deadline)
            if told.get("id") == number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return told["result"]
            self.events.append(told)

    def wait_for(self, event, session, *, timeout=60):
        deadline = time.monotonic() + timeout
        while not any(e.get("method") == event and e.get("sessionId") == session for e in self.events):
            self.events.append(self._next(deadline))

    def _next(self, deadline):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(deadline - time.monotonic(), 0))
            data = os.read(self._in, 1 << 20) if ready else None
            if data is None:
                raise TimeoutError("Chromium does not answer")
            if not data:
                raise OSError("Chromium has ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)


class Page:
    """One tab."""

    def __init__(self, browser, session):
        self._browser, self.session = browser, session

    def call(self, method, **params):
        return self._browser.call(method, self.session, **params)

    def evaluate(self, code):
        told = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def mouse(self, kind, x, y, **more):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(self, start, end):
        self.mouse("mouseMoved", *start)
        self.mouse("mousePressed", *start, button="left", buttons=1, clickCount=1)
        for i in range(1, 5):
            at = [a + (b - a) * i / 4 for a, b in zip(start, end, strict=True)]
            self.mouse("mouseMoved", *at, button="left", buttons=1)
        self.mouse("mouseReleased", *end, button="left", clickCount=1)

    def double_click(self, x, y):
        for count in (1, 2):
            self.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=count)
            self.mouse("mouseReleased", x, y, button="left", clickCount=count)

    def screenshot(self, path, *, whole=True):
        told = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    def pdf(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"]))

    def told(self, method):
        """Parameters of the events of one kind in this tab."""
        events = self._browser.events
        return [
            e["params"] for e in events if e.get("method") == method and e.get("sessionId") == self.session
        ]

    @property
    def complaints(self):
        """Console messages, uncaught exceptions and what the browser logged itself."""
        console = [str(event["args"]) for event in self.told("Runtime.consoleAPICalled")]
        uncaught = [str(event["exceptionDetails"]) for event in self.told("Runtime.exceptionThrown")]
        return console + uncaught + [str(event["entry"]) for event in self.told("Log.entryAdded")]

    @property
    def requests(self):
        return [event["request"]["url"] for event in self.told("Network.requestWillBeSent")]
