"""Children: they die with their parent, are restarted when they end by themselves, and end in order."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from adiuva.embedded.processes import Child, StackError, Supervisor, python, start_server

_PARENT = """
import signal, sys, threading
from pathlib import Path
from adiuva.embedded.processes import Child, python
child = Child("child", python("-c", "import signal; print('up', flush=True); signal.pause()"), Path(sys.argv[1]),
              keeps=(int(sys.argv[2]),), is_watched=sys.argv[3] == "watcher", death_signal=signal.SIGTERM)
child.start()
child.wait_until(lambda: b"up" in child.log.read_bytes(), within_s=60)
print("child is up", flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize(
    "way",
    [pytest.param("kernel", marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux")), "watcher"],
)
def test_a_child_dies_with_a_parent_that_was_killed(tmp_path: Path, way: str) -> None:
    ours, theirs = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, tmp_path / "log", str(theirs), way],
        stdout=subprocess.PIPE,
        pass_fds=[theirs],
    )
    os.close(theirs)
    assert parent.stdout and parent.stdout.readline() == b"child is up\n"
    parent.kill()
    parent.wait()
    assert os.read(ours, 1) == b""  # the end of the pipe: nobody holds its other end any more
    os.close(ours)
    parent.stdout.close()


def test_the_watcher_passes_on_how_a_child_is_asked_to_end_and_how_it_ends(tmp_path: Path) -> None:
    script = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); signal.pause()"
    child = Child("child", python("-c", script), tmp_path / "log", is_watched=True)
    child.start()
    child.wait_until(lambda: b"up" in child.log.read_bytes(), within_s=60)
    child.stop()
    assert child.process and child.process.returncode == 7


def test_a_child_that_ends_by_itself_is_started_again_until_it_is_hopeless(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(say=said.append, backoff_s=0)
    child = supervisor.start(Child("worker", python("-c", "raise SystemExit('no broker')"), tmp_path / "log"))
    with pytest.raises(StackError) as hopeless:
        while child.wait(within_s=60):
            supervisor.restart_ended()
    assert said == [f"worker ended by itself (code 1) and is started again; see {tmp_path / 'log'}"] * 4
    assert "no broker" in hopeless.value.message
    assert str(tmp_path / "log") in hopeless.value.message


def test_children_end_in_the_opposite_order_and_a_deaf_one_is_killed(tmp_path: Path) -> None:
    order = tmp_path / "order"
    write_and_end = f"(open({str(order)!r}, 'a').write(sys.argv[1]), sys.exit())"
    polite = f"import signal, sys; signal.signal(15, lambda *_: {write_and_end})"
    supervisor = Supervisor(say=print)
    for name, script in {
        "a": polite,
        "deaf": "import signal; signal.signal(15, signal.SIG_IGN)",
        "b": polite,
    }.items():
        ready = f"{script}; print('up', flush=True)\nwhile True: signal.pause()"
        child = Child(name, python("-c", ready, name), tmp_path / f"{name}.log", grace_s=0.5)
        supervisor.start(child).wait_until(lambda log=child.log: b"up" in log.read_bytes(), within_s=60)
    children = list(supervisor.children)
    supervisor.stop()
    assert order.read_text() == "ba"
    assert [child.alive for child in children] == [False] * 3


def test_a_program_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="cannot be started"):
        Child("nothing", [tmp_path / "nothing"], tmp_path / "log").start()


def test_a_server_whose_port_was_taken_meanwhile_starts_on_another(tmp_path: Path) -> None:
    listen = "s = socket.create_server(('127.0.0.1', int(sys.argv[1])))"
    script = f"import socket, sys; {listen}; print('up', flush=True); s.accept()"
    with socket.create_server(("127.0.0.1", 0)) as quicker:
        ports = [quicker.getsockname()[1]]

        def server(port: int) -> Child:
            ports.append(port)
            return Child("server", python("-c", script, str(ports[-2])), tmp_path / "log")

        child, port = start_server(server, lambda port: b"up" in (tmp_path / "log").read_bytes())
    assert ports[2:] == [port]
    child.stop()
