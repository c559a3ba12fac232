"""Real server processes that use the test database."""

from __future__ import annotations

import os
import signal
import time
import urllib.error
import urllib.request
from collections import deque
from contextlib import suppress
from pathlib import Path

from adiuva.embedded.ports import free_port
from adiuva.embedded.processes import Child, StackError, python, tail
from tests.fakes.provider import Provider
from tests.forkserver import ForkedChild

ROOT = Path(__file__).resolve().parent.parent


class Stack:
    """Starts each process on first request, waits until it serves, and ends it with the test module."""

    def __init__(self, database_url: str, folder: Path, **env: str) -> None:
        self.env = {**os.environ, "DATABASE_URL": database_url, **env}
        self.folder = folder
        self._children: dict[str, Child] = {}
        self._ended: deque[Child] = deque(maxlen=2)

    def web(self, server: str = "uvicorn", **env: str) -> str:
        """The base URL of a web process behind this ASGI server, with these environment variables.

        Callers that ask for the same share one process.
        """
        env = {name: value for name, value in env.items() if self.env.get(name) != value}
        name = "-".join(["web", server, *(f"{name}={value}" for name, value in sorted(env.items()))])
        if child := self._children.get(name):
            return f"http://127.0.0.1:{(child.env or {})['ADIUVA_PORT']}"
        port = free_port()
        child = self.run(
            name, python("-m", "adiuva.server"), ADIUVA_SERVER=server, ADIUVA_PORT=str(port), **env
        )
        url = f"http://127.0.0.1:{port}"
        child.wait_until(lambda: answers(f"{url}/api/v1/health"), within_s=120, every_s=0.05)
        return url

    def worker(self, **env: str) -> None:
        """Start one Celery worker with these environment variables, unless it runs already."""
        if "worker" in self._children:
            return
        node = f"test-{os.getpid()}@localhost"
        command = python("-m", "celery", "-A", "adiuva", "worker", "--without-mingle", "-n", node)
        # Not Django's checks, as in `make run`: they are a third of its start.
        child = self.run("worker", command, **{"CELERY_SKIP_CHECKS": "1"} | env)
        child.wait_until(lambda: f"{node} ready." in child.log.read_text(), within_s=120)

    def run(self, name: str, argv: list[str], **env: str) -> Child:
        """Start a Python program. Its log is part of the report of a failed test."""
        child = ForkedChild(name, argv, self.folder / f"{name}.log", env=self.env | env, cwd=ROOT)
        self._children[name] = child
        child.start()
        return child

    def kill(self, url: str) -> None:
        """Kill a web process with SIGKILL."""
        self._take(url).kill()

    def end(self, url: str, by: signal.Signals = signal.SIGTERM) -> Child:
        """Send a web process a signal that ends it, and return it so that the caller can wait for its end."""
        child = self._take(url)
        assert child.process is not None
        child.process.send_signal(by)
        return child

    def log(self, url: str) -> Path:
        """The log of a web process. Tests that share the process share its log."""
        return self._children[self._name(url)].log

    def _take(self, url: str) -> Child:
        child = self._children.pop(self._name(url))
        self._ended.append(child)
        return child

    def _name(self, url: str) -> str:
        port = url.rpartition(":")[2]
        return next(
            name
            for name, child in self._children.items()
            if name.startswith("web-") and (child.env or {})["ADIUVA_PORT"] == port
        )

    def stop(self) -> None:
        """Stop all of them at once."""
        for child in self._children.values():
            if child.process is not None and child.alive:
                child.process.send_signal(child.stop_signal)
        while self._children:
            child = self._children.popitem()[1]
            with suppress(StackError):
                child.wait(within_s=child.grace_s)
            child.kill()

    def tails(self, lines: int = 40) -> list[tuple[str, str]]:
        """The last lines of each log that has grown lately, with the name of its process."""
        lately = time.time() - 90
        children = [*self._ended, *self._children.values()]
        return [(each.name, tail(each.log, lines)) for each in children if each.log.stat().st_mtime > lately]


def model_of(provider: Provider) -> dict[str, str]:
    """Environment variables for a process whose model is the fake provider."""
    return {
        "ADIUVA_MODEL": "openai/scripted",
        "ADIUVA_MODEL_API_BASE": provider.url,
        "ADIUVA_EMBEDDING_MODEL": "openai/scripted",
        "ADIUVA_EMBEDDING_MODEL_API_BASE": provider.url,
    }


def answers(url: str) -> bool:
    """Whether an HTTP server answers there, with any status."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
