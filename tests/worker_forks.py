"""A server that forks the test processes of pytest-xdist, after it has imported their tests once.

Each of them would take 6 s of CPU to import what it tests and its tests. The server does that once for all of them, and
then forgets Django's settings and what was computed from them. A fork has settings and plugins of its own, and collects
the same tests from modules that are imported, in 1 s.

pytest-xdist starts a test process by a command; here it is `tests.forked_worker`.
"""

from __future__ import annotations

import os
import socket
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adiuva.embedded import forks, parent_death
from adiuva.embedded.processes import Child, python
from tests import forkserver
from tests.forked_worker import SOCKET_VARIABLE

if TYPE_CHECKING:
    import execnet

_ROOT = Path(__file__).resolve().parent.parent


def start(folder: Path, config: pytest.Config) -> Child | None:
    """Start the server for the tests that this run collects. None outside Linux, and where its command is not found."""
    if not parent_death.HAS_KERNEL_SUPPORT or Path.cwd() != _ROOT:
        return None
    # Which cases are drawn depends on it (tests/sampling.py).
    config.option.testrunuid = run = config.getoption("testrunuid") or uuid.uuid4().hex
    path = str(folder / "worker_forks")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        child = Child(
            "worker_forks",
            python("-m", "tests.worker_forks", *config.args),
            Path(f"{path}.log"),
            # numpy is to start no threads here.
            env=os.environ | {"PYTEST_XDIST_TESTRUNUID": run, "OPENBLAS_NUM_THREADS": "1"},
            cwd=_ROOT,
        )
        child.stdin_from = listening.fileno()
        child.start()
    os.environ[SOCKET_VARIABLE] = path
    config.pluginmanager.register(_ForksInstead())
    return child


class _ForksInstead:
    """A plugin that has pytest-xdist start test processes by another command."""

    def pytest_xdist_setupnodes(self, specs: Sequence[execnet.XSpec]) -> None:
        for spec in specs:
            if spec.popen and not spec.python:
                spec.python = f"{sys.executable} -m tests.forked_worker"


# ── The server ──────────────────────────────────────────────────────────────────────────────────────────


class _Imported(pytest.Module):
    """A test module that is imported. Nobody looks into it: to look at a task of Celery configures Celery."""

    def collect(self) -> list[pytest.Item]:
        assert self.obj
        return []


class _Imports:
    """A plugin that has pytest import test modules, and what processes use, and collect nothing."""

    def pytest_pycollect_makemodule(self, module_path: Path, parent: pytest.Collector) -> pytest.Module:
        return _Imported.from_parent(parent, path=module_path)

    def pytest_collection_finish(self) -> None:
        forkserver.import_modules()  # here, pytest still has a say in how modules are loaded
        if "hypothesis" in sys.modules:
            _make_tables_of_hypothesis()


def _make_tables_of_hypothesis() -> None:
    """What its first draws would look up: the characters there are, and the constants in our modules."""
    from hypothesis.internal import charmap
    from hypothesis.internal.conjecture import providers

    charmap.intervals_from_codec("utf-8")
    providers._get_local_constants()


def _serve(arguments: list[str]) -> None:
    listening = socket.socket(fileno=os.dup(0))
    once = ["--collect-only", "-qq", "-n", "0", "-p", "no:cacheprovider"]
    with forkserver.settings_are_forgotten():
        pytest.main([*once, *arguments], plugins=[_Imports()])
    forks.run(forks.serve(listening, lambda: listening.accept()[0]))


if __name__ == "__main__":
    _serve(sys.argv[1:])
