"""A headless Chromium driven through the DevTools protocol: enough to open a page, act on it and look at it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile in `folder`; skips the test where there is none."""
    connect = pytest.importorskip("websockets.sync.client", reason="needs websockets, of the test extra").connect
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    arguments = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}", "--no-first-run"]
    with subprocess.Popen(
        [program, *arguments, "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage", *root, "about:blank"],
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            address = next(
                found[1] for line in process.stderr if (found := re.search(r"listening on (ws://\S+)", line))
            )
            with connect(address, max_size=None) as socket:
                yield Browser(socket)
        finally:
            process.kill()


class Browser:
    """One tab after another of a running Chromium."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.count, self.session, self.target = socket, 0, None, None
        self.complaints: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol; what the page complains of meanwhile is kept in `complaints`."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        kind, told = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"].get("exception", told["exceptionDetails"]))[:500])
        elif kind == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif kind == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.complaints.append(str(told["args"])[:500])
        elif kind == "Network.requestWillBeSent" and not told["request"]["url"].startswith(("data:", self.url)):
            self.complaints.append(f"asked for {told['request']['url']}")

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False) -> None:
        """A new tab of that size on `url`, once the page says it is ready."""
        old, self.session, self.complaints, self.url = self.target, None, [], url
        if old is not None:
            self.call("Target.closeTarget", targetId=old)
        self.target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        stop = time.monotonic() + 30
        while self.run("document.documentElement?.dataset.ready || ''") == "":
            assert time.monotonic() < stop, self.complaints
            time.sleep(0.02)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression (promises awaited)."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(str(told["exceptionDetails"])[:800])
        return told["result"].get("value")

    def key(self, key: str, code: str = "") -> None:
        """Press and let go of a key where the focus is."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=code or key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=code or key)

    def write(self, text: str) -> None:
        """Type where the focus is."""
        self.call("Input.insertText", text=text)

    def click(self, x: float, y: float, times: int = 1) -> None:
        """Press the left button at a place of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=times)

    def drag(self, x: float, y: float, dx: float, dy: float) -> None:
        """Drag with the left button."""
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)
        for part in (0.3, 0.6, 1.0):
            place = {"x": x + dx * part, "y": y + dy * part}
            self.call("Input.dispatchMouseEvent", type="mouseMoved", button="left", buttons=1, **place)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x + dx, y=y + dy, button="left", clickCount=1)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """What is in the window, or all of the page, as PNG."""
        told = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))
