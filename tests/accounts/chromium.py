"""A headless Chromium for tests of pages, spoken to over the DevTools protocol."""

from __future__ import annotations

import atexit
import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_WAIT_S = 90


class Connection:
    """Calls over one DevTools socket."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.number = 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            said = json.loads(self.socket.recv(_WAIT_S))
            if said.get("id") == self.number:
                assert "error" not in said, said
                return dict(said["result"])
            self._hear(said)

    def _hear(self, said: dict[str, Any]) -> None:
        """An event that came meanwhile."""


class Page(Connection):
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        super().__init__(socket)
        self.problems: list[str] = []  # what the console and the browser complained of
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def _hear(self, said: dict[str, Any]) -> None:
        entry = said.get("params", {}).get("entry", {})
        if said.get("method") == "Log.entryAdded" and entry.get("level") in {"error", "warning"}:
            self.problems.append(entry.get("text", ""))
        if said.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(said["params"]["exceptionDetails"].get("text")))

    def evaluate(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """The value of an expression once it is true."""
        until = time.monotonic() + _WAIT_S
        while not (found := self.evaluate(script)):
            assert time.monotonic() < until, f"{script}: {self.text}"
            time.sleep(0.05)
        return found

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    @property
    def text(self) -> str:
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def wait_for_heading(self, heading: str) -> None:
        wanted = json.dumps(heading)
        self.wait_for(
            f"document.readyState === 'complete' && document.querySelector('h1')?.innerText === {wanted}"
        )

    def fill(self, **values: str) -> None:
        for name, value in values.items():
            field = f"document.querySelector('[name={name}]:not([type=hidden])')"
            assert self.evaluate(f"{field} !== null"), f"no field {name}: {self.text}"
            self.evaluate(f"{field}.value = {json.dumps(value)}")

    def press(self, label: str) -> None:
        """Click the button or link with this text, as a person would: it must be visible."""
        wanted = json.dumps(label)
        shown = "[...document.querySelectorAll('button, a')].filter(each => each.checkVisibility())"
        label_of = "(each.ariaLabel ?? each.innerText).replace(/\\s+/g, ' ').trim()"
        found = self.evaluate(
            f"{{const one = {shown}.find(each => {label_of} === {wanted}); one?.click(); !!one}}"
        )
        assert found, f"nothing to press called {label}: {self.text}"

    def add_authenticator(self) -> None:
        """A virtual passkey device, which verifies its owner by itself."""
        self.call("WebAuthn.enable")
        options = {
            "protocol": "ctap2",
            "transport": "internal",
            "hasResidentKey": True,
            "hasUserVerification": True,
            "isUserVerified": True,
            "automaticPresenceSimulation": True,
        }
        self.call("WebAuthn.addVirtualAuthenticator", options=options)

    def look(self, *, width: int = 1280, dark: bool = False) -> None:
        """Be this wide, light or dark."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def picture(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser() -> Iterator[Page]:
    """A tab without cookies, and with nothing cached, of a browser that all tests of this process share."""
    base, path = _running()
    with connect(f"{base}{path}", max_size=None) as socket:
        control = Connection(socket)
        context = control.call("Target.createBrowserContext")["browserContextId"]
        target = control.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        try:
            with connect(f"{base}/devtools/page/{target}", max_size=None) as tab:
                yield Page(tab)
        finally:
            control.call("Target.disposeBrowserContext", browserContextId=context)


@cache
def _running() -> tuple[str, str]:
    """Start it. The address of its DevTools sockets, and the path of that of the browser itself."""
    assert PROGRAM
    profile = Path(tempfile.mkdtemp())
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-port=0",
        "--no-first-run",
    ]
    command = [PROGRAM, *flags, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end() -> None:
        process.terminate()
        process.wait(20)
        shutil.rmtree(profile, ignore_errors=True)

    atexit.register(end)
    told, until = profile / "DevToolsActivePort", time.monotonic() + 60
    while not told.exists() or len(found := told.read_text().split()) < 2:
        assert time.monotonic() < until, "Chromium did not start"
        time.sleep(0.1)
    return f"ws://127.0.0.1:{found[0]}", found[1]
