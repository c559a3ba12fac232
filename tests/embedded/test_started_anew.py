"""The processes of an installation as they are started without `make run`: each by itself, with nothing preloaded."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from adiuva.core import celery_heartbeat
from adiuva.embedded.ports import free_port
from adiuva.embedded.processes import Child, python
from tests.server_processes import ROOT, Stack, answers

_CELERY = ("-m", "celery", "-A", "adiuva")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("web", ["-m", "adiuva.server"]),
        ("worker", [*_CELERY, "worker", "--without-mingle", "-n", f"anew-{os.getpid()}@localhost"]),
        ("beat", [*_CELERY, "beat", "--pidfile="]),
    ],
)
def test_a_process_that_is_started_by_itself_serves(
    stack: Stack, tmp_path: Path, name: str, arguments: list[str]
) -> None:
    port = free_port()
    child = Child(
        name,
        python(*arguments),
        tmp_path / "log",
        env=stack.env | {"ADIUVA_PORT": str(port)},
        cwd=ROOT,
    )
    child.start()
    try:
        ready = {
            "web": lambda: answers(f"http://127.0.0.1:{port}/api/v1/health"),
            "worker": lambda: b"ready." in child.log.read_bytes(),
            "beat": lambda: celery_heartbeat.count_alive("beat") > 0,
        }
        child.wait_until(ready[name], within_s=120)
    finally:
        child.stop()
    # uvicorn ends its work in order, and then by the signal that asked for it.
    assert child.process and child.process.returncode == (-signal.SIGTERM if name == "web" else 0)


def test_a_worker_with_beat_is_both_and_ends_as_both(stack: Stack, tmp_path: Path) -> None:
    command = python(
        *_CELERY, "worker", "--with-beat", "--without-mingle", "-n", f"both-{os.getpid()}@localhost"
    )
    child = Child("worker", command, tmp_path / "log", env=stack.env, cwd=ROOT, grace_s=20)
    child.start()
    child.wait_until(lambda: celery_heartbeat.count_alive("beat") > 0, within_s=120)
    child.wait_until(lambda: celery_heartbeat.count_alive("worker:short") > 0, within_s=120)
    child.stop()
    assert child.process and child.process.returncode == 0
    assert celery_heartbeat.count_alive("beat") == 0
