"""Headless Chromium, driven by the DevTools protocol over a pipe: no driver program and no further package."""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    # a page that asks for anything beyond this machine gets an error
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--remote-debugging-pipe",
)
PATIENCE_S = 60.0
# Chromium reads commands from descriptor 3 and writes to 4.
LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def chromium() -> str:
    """Path of the browser; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on this machine: apt-get install chromium")


class Browser:
    """A browser with an empty profile. Use as a context manager.

    Args:
        *flags: further ones of Chromium.
    """

    def __init__(self, *flags: str) -> None:
        self.profile = Path(tempfile.mkdtemp(prefix="leadline-chromium-"))
        command_in, self._commands = os.pipe()
        self._answers, answer_out = os.pipe()
        command = [chromium(), *FLAGS, *flags, f"--user-data-dir={self.profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(command_in), str(answer_out), *command],
            pass_fds=(command_in, answer_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_in)
        os.close(answer_out)
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self._count = 0
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.send("Browser.close")
            self._process.wait(10)
        except (OSError, RuntimeError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        shutil.rmtree(self.profile, ignore_errors=True)

    def _read(self) -> None:
        rest = b""
        with os.fdopen(self._answers, "rb", buffering=0) as pipe:
            while data := pipe.read(1 << 16):
                *messages, rest = (rest + data).split(b"\0")
                for message in messages:
                    self._messages.put(json.loads(message))
        self._messages.put({"closed": True})

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._count += 1
        call: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if session is not None:
            call["sessionId"] = session
        os.write(self._commands, json.dumps(call).encode() + b"\0")
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                message = self._messages.get(timeout=max(0.01, until - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"Chromium did not answer {method}") from None
            if "closed" in message:
                raise RuntimeError("Chromium ended")
            if message.get("id") == self._count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            self.events.append(message)

    def page(self, url: str, size: tuple[int, int] = (1280, 800)) -> Page:
        """A new tab at an address; `size` is (width, height) of its window in CSS pixels, as browsers say it."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            page.send(f"{domain}.enable")
        page.resize(*size)
        page.send("Page.navigate", url=url)
        return page


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol on this tab."""
        return self.browser.send(method, self.session, **parameters)

    def resize(self, width: int, height: int) -> None:
        """Give the tab a size in CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript; promises are waited for."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, script: str, patience_s: float = PATIENCE_S) -> Any:
        """Wait until an expression is true and return its value."""
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            try:
                if value := self.run(script):
                    return value
            except RuntimeError as error:  # the page was being loaded just then
                if "closed" in str(error) or "ended" in str(error):
                    raise
            time.sleep(0.05)
        raise TimeoutError(f"still not: {script}; the page says {self.text('body')!r}")

    def text(self, selector: str) -> str:
        """What an element says."""
        return str(self.run(f"document.querySelector({selector!r}).innerText"))

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in an `<input type=file>` as a user does."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def press(self, key: str, shift: bool = False) -> None:
        """Press a key and let it go."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, modifiers=8 if shift else 0)

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a point of the window."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def save_downloads(self, folder: Path) -> None:
        """Let downloads of the browser go to a folder."""
        self.browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def screenshot(self, path: Path) -> None:
        """The window as a PNG file."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def requests(self) -> list[str]:
        """Addresses that pages of the browser have asked for since it began; workers' own are not among them."""
        events = (event for event in self.browser.events if event.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in events]

    def faults(self) -> list[str]:
        """What was thrown and not caught, or logged as an error."""
        found = []
        for event in self.browser.events:
            if event.get("method") == "Runtime.exceptionThrown":
                details = event["params"]["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
        return found


class Serving:
    """A handler of `http.server` on a free port of this machine; gives the address."""

    def __init__(self, handler: Any) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
