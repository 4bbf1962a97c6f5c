"""A headless Chromium, driven by its own WebDriver over HTTP. Skips where there is none."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip


class Browser:
    """One session. Every error of the page's console is collected."""

    def __init__(self, address: str, capabilities: dict[str, Any]) -> None:
        self.address = address
        given = {"capabilities": {"alwaysMatch": capabilities}}
        self.session = self._ask("POST", "/session", given)["sessionId"]

    def _ask(self, method: str, path: str, data: Any = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def _do(self, path: str, data: Any = None, method: str = "POST") -> Any:
        return self._ask(method, f"/session/{self.session}{path}", data)

    def command(self, name: str, **params: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._do("/goog/cdp/execute", {"cmd": name, "params": params})

    def open(self, file: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        mobile = width < 600
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=2 if mobile else 1, mobile=mobile,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self._do("/url", {"url": file.as_uri()})

    def run(self, script: str, *args: Any) -> Any:
        """What a script returns."""
        return self._do("/execute/sync", {"script": script, "args": list(args)})

    def settle(self) -> None:
        """Waits for what is to be drawn."""
        self._do(
            "/execute/async",
            {"script": "const done = arguments[0]; requestAnimationFrame(() => "
                       "requestAnimationFrame(() => done(null)));", "args": []},
        )  # fmt: skip

    def errors(self) -> list[str]:
        """Of the console since the last call."""
        found = self._do("/se/log", {"type": "browser"})
        return [x["message"] for x in found if x["level"] == "SEVERE"]

    def screenshot(self, file: Path, whole: bool = False) -> None:
        data = self.command("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(data))

    def print(self, file: Path) -> None:
        """The page as a PDF."""
        data = self.command("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        file.write_bytes(base64.b64decode(data["data"]))

    def close(self) -> None:
        self._do("", method="DELETE")


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser of its own, without a network of its own."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("there is no chromium with a chromedriver")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            _wait(port)
            options = {"binary": program, "args": [*FLAGS, f"--user-data-dir={profile}"]}
            capabilities = {
                "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"},
            }  # fmt: skip
            found = Browser(f"http://127.0.0.1:{port}", capabilities)
            try:
                yield found
            finally:
                found.close()
        finally:
            process.terminate()
            process.wait(30)


def _wait(port: int) -> None:
    for _ in range(100):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.skip("chromedriver does not start")
