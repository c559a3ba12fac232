"""Programs that are forked: each has its own environment and output, and ends as a child of its own would."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adiuva.embedded.forks import ForkServer
from adiuva.embedded.processes import Child, StackError, Supervisor, python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
_SERVER = "from adiuva.embedded import forks; before = 1; forks.run(forks.serve_parent())"
_WAITS = "import signal; print('up', flush=True); signal.pause()"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    made = ForkServer("server", python("-c", _SERVER), tmp_path / "server.log")
    made.start()
    yield made
    made.stop()


def fork(server: ForkServer, name: str, script: str, *arguments: str, **env: str) -> Child:
    log = server.log.with_name(f"{name}.log")
    child = Child(
        name, python("-c", script, *arguments), log, env=os.environ | env, grace_s=5, forked_by=server
    )
    child.start()
    return child


def wait_up(child: Child) -> None:
    child.wait_until(lambda: b"up" in child.log.read_bytes(), within_s=60)


def test_a_fork_has_its_own_environment_arguments_output_and_name(server: ForkServer) -> None:
    script = (
        "import os, sys; print(sys.argv[1:], os.environ['WORD'], repr(sys.stdin.read()), "
        "open('/proc/self/comm').read()); sys.exit(7)"
    )
    for word in ("one", "two" * 100_000):  # the second is more than a socket holds at once
        child = fork(server, f"fork-{word[:3]}", script, "a", "b", WORD=word)
        assert child.wait(within_s=60) == 7
        assert child.log.read_text().split() == ["['a',", "'b']", word, "''", child.name]


def test_the_server_goes_on_while_nobody_asks(tmp_path: Path) -> None:
    steps = "(print(word, flush=True) for word in ('one', 'two', 'three'))"
    made = ForkServer("server", python("-c", _SERVER.replace("()", f"({steps})")), tmp_path / "server.log")
    made.start()
    try:
        for _ in range(2):  # before its end or after
            assert fork(made, "asks", "import sys; sys.exit(7)").wait(within_s=60) == 7
            made.wait_until(lambda: made.log.read_text().split() == ["one", "two", "three"], within_s=60)
    finally:
        made.stop()


def test_how_a_fork_ends_is_told(server: ForkServer) -> None:
    polite = fork(server, "polite", "import signal, sys; signal.signal(15, lambda *_: sys.exit(3));" + _WAITS)
    killed = fork(server, "killed", _WAITS)
    for child in (polite, killed):
        wait_up(child)
        assert child.alive
    polite.stop()
    assert killed.process
    killed.process.send_signal(signal.SIGKILL)
    assert killed.wait(within_s=60) == -signal.SIGKILL
    assert polite.process and polite.process.returncode == 3


def test_a_fork_that_is_deaf_is_killed_with_what_it_started(server: ForkServer, tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    script = (
        "import os, signal, subprocess, sys; signal.signal(15, signal.SIG_IGN); "
        f"os.open('/proc/{os.getpid()}/fd/{theirs}', os.O_WRONLY); "
        "subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'], close_fds=False);" + _WAITS
    )
    child = fork(server, "deaf", script)
    wait_up(child)
    os.close(theirs)
    child.grace_s = 0.2
    child.stop()
    assert os.read(ours, 1) == b""  # nobody holds the pipe's other end any more
    os.close(ours)


def test_forks_end_with_their_server_and_come_back_with_it(server: ForkServer) -> None:
    said: list[str] = []
    supervisor = Supervisor(say=said.append, backoff_s=0)
    supervisor.start(server)
    child = fork(server, "child", _WAITS)
    supervisor.start(child)
    wait_up(child)
    assert server.process and child.process
    before = child.process.pid
    server.process.send_signal(signal.SIGKILL)
    assert child.wait(within_s=60) == -signal.SIGKILL
    server.wait(within_s=60)
    while not child.alive:
        supervisor.restart_ended()
    assert child.process.pid != before
    assert [line.split()[0] for line in said] == ["server", "child"]
    child.stop()


def test_each_fork_draws_random_numbers_of_its_own(server: ForkServer) -> None:
    drawn = set()
    for name in ("one", "two"):
        child = fork(server, name, "import random, uuid; print(random.random(), uuid.uuid4())")
        assert child.wait(within_s=60) == 0
        drawn |= set(child.log.read_text().split())
    assert len(drawn) == 4


def test_why_a_server_has_ended_is_said_by_what_it_was_to_fork(tmp_path: Path) -> None:
    script = "import sys; sys.exit('ADIUVA_KEYS must be keys')"
    server = ForkServer("server", python("-c", script), tmp_path / "server.log")
    server.start()
    for _ in range(2):  # while it ends, and after
        with pytest.raises(StackError) as told:
            fork(server, "late", _WAITS)
        expected = f"late cannot be started: server has ended: ADIUVA_KEYS must be keys (see {server.log})"
        assert told.value.message == expected


def test_a_server_with_a_thread_refuses_to_fork(tmp_path: Path) -> None:
    script = (
        f"import threading; threading.Thread(target=threading.Event().wait, daemon=True).start(); {_SERVER}"
    )
    server = ForkServer("server", python("-c", script), tmp_path / "server.log")
    server.start()
    assert server.wait(within_s=60) == 1
    assert "2 threads run" in server.log.read_text()
