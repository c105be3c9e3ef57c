"""A real Chromium without a window, by the Chrome DevTools protocol: pages, files dropped on them, pictures."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

PATIENCE_S = 30.0
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt install chromium)")


@dataclass
class Page:
    """A page of the browser. ``complaints``: what its console says that is an error or a warning."""

    connection: ClientConnection
    complaints: list[str] = field(default_factory=list)
    _number: int = 0

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol and return its result; RuntimeError where the browser refuses it."""
        self._number += 1
        self.connection.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            said = json.loads(self.connection.recv(PATIENCE_S))
            if said.get("id") == self._number:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']}")
                result: dict[str, Any] = said["result"]
                return result
            if said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] in ("error", "warning"):
                self.complaints.append(said["params"]["entry"]["text"])
            if said.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(str(said["params"]["exceptionDetails"]))

    def open(self, address: str) -> None:
        self.ask("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """Return what a JavaScript expression is in the page; it must be JSON."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until the expression is true and return it; AssertionError after ``PATIENCE_S``."""
        end = time.monotonic() + PATIENCE_S
        while not (found := self.value(expression)):
            assert time.monotonic() < end, f"{expression} is not true; the page says {self.value(TEXT)!r}"
            time.sleep(0.05)
        return found

    def drag(self, file: Path, onto: str, *kinds: str) -> None:
        """Drag a file of this machine over the middle of an element, by its CSS selector.

        ``kinds``: of ``dragEnter``, ``dragOver``, ``drop`` and ``dragCancel``, in their order.
        """
        place = self.value(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
                           f"(document.querySelector({json.dumps(onto)}).getBoundingClientRect())")  # fmt: skip
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in kinds:
            self.ask("Input.dispatchDragEvent", type=kind, x=place[0], y=place[1], data=data)

    def picture(self, path: Path) -> None:
        """Write the whole page as PNG."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


TEXT = "document.body && document.body.innerText"


@contextmanager
def page(width_px: int = 1100, height_px: int = 900, *, dark: bool = False) -> Iterator[Page]:
    """Start Chromium with an empty page; it has ended after the block."""
    assert CHROMIUM, "there is no Chromium here"
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        command = [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
            "--disable-background-networking", "--remote-debugging-port=0", "--remote-debugging-address=127.0.0.1",
            f"--user-data-dir={folder}", f"--window-size={width_px},{height_px}", "about:blank",
        ]  # fmt: skip
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with connect(_address(Path(folder)), max_size=None) as connection:
                opened = Page(connection)
                for domain in ("Page", "Runtime", "Log"):
                    opened.ask(f"{domain}.enable")
                theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
                opened.ask("Emulation.setEmulatedMedia", features=[theme])
                yield opened
        finally:
            browser.terminate()
            browser.wait(PATIENCE_S)


def _address(folder: Path) -> str:
    """Return where the page listens, as soon as Chromium says so."""
    end = time.monotonic() + PATIENCE_S
    while True:
        assert time.monotonic() < end, "Chromium does not start"
        time.sleep(0.05)
        lines = (folder / "DevToolsActivePort").read_text().split() if (folder / "DevToolsActivePort").exists() else []
        if len(lines) == 2:
            pages = httpx.get(f"http://127.0.0.1:{lines[0]}/json/list", trust_env=False).json()
            if found := [one for one in pages if one["type"] == "page"]:
                return str(found[0]["webSocketDebuggerUrl"])
