"""Server that runs Python programs as forks of itself, after it has imported what they need.

A fork starts in a tenth of a second, and shares the memory of imported modules. It reads its request, with arguments
and environment, from a connection of its own, so the server never sees the secrets in it. Linux only: on macOS, system
libraries do not survive a fork.

Imports for such a server must start no thread, event loop or connection: a fork would have its memory and not the thing
itself.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from adiuva.embedded import parent_death
from adiuva.embedded.processes import Child, StackError, tail

ARE_SAFE = parent_death.HAS_KERNEL_SUPPORT
_PID_DIGITS, _LENGTH_DIGITS = 10, 8
_ENDING_S = 2.0
_HANDED = b"c"  # goes with a connection that is handed over


# ── Who asks for forks ──────────────────────────────────────────────────────────────────────────────────


class ForkedProcess:
    """Process that a server forked for us, with the interface of `subprocess.Popen`.

    It is not our child, so the server waits for it and reports its exit code. If the server ends, so do its forks.
    """

    stdin = None

    def __init__(self, connection: socket.socket) -> None:
        """Ask the server for a fork. Raises OSError if the server is gone."""
        self._connection = connection
        self.returncode: int | None = None
        answer = connection.recv(_PID_DIGITS, socket.MSG_WAITALL)
        if len(answer) < _PID_DIGITS:
            raise ConnectionResetError("the server has ended")
        self.pid = int(answer)

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            try:
                self.returncode = int(self._connection.recv(64) or -signal.SIGKILL)
            except ConnectionResetError:
                self.returncode = -signal.SIGKILL
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def ask(connection: socket.socket, child: Child) -> ForkedProcess:
    """Ask the server behind a new connection to run the child's program. Raises OSError if the server is gone."""
    request = {
        "argv": [str(part) for part in child.argv],
        "env": dict(os.environ if child.env is None else child.env),
        "name": child.name,
    }
    body = json.dumps(request).encode()
    try:
        with child.log.open("ab") as out, Path(os.devnull).open("rb") as nothing:
            stdin = nothing.fileno() if child.stdin_from == subprocess.DEVNULL else child.stdin_from
            socket.send_fds(connection, [b"%0*d" % (_LENGTH_DIGITS, len(body))], [stdin, out.fileno()])
            connection.sendall(body)
        return ForkedProcess(connection)
    except OSError:
        connection.close()
        raise


@dataclass
class ForkServer(Child):
    """Child that forks others. Its program calls `serve_parent`."""

    _control: socket.socket | None = field(default=None, init=False)

    def start(self) -> None:
        if self._control:
            self._control.close()
        self._control, theirs = socket.socketpair()
        with theirs:
            self.stdin_from = theirs.fileno()
            super().start()

    def fork(self, child: Child) -> ForkedProcess:
        """Fork a program. Raises OSError, with the end of this server's log, if it is gone."""
        try:
            return ask(self._connect(), child)
        except OSError:
            with suppress(StackError):  # it may be about to end
                self.wait(within_s=_ENDING_S)
            raise ConnectionRefusedError(
                f"{self.name} has ended: {tail(self.log)} (see {self.log})"
            ) from None

    def _connect(self) -> socket.socket:
        if self._control is None:
            raise ConnectionRefusedError(f"{self.name} was never started")
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [_HANDED], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours


# ── The server ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class ForkRequest:
    argv: Sequence[str]
    env: Mapping[str, str]
    name: str
    stdin: int
    out: int

    @classmethod
    def read(cls, connection: socket.socket) -> ForkRequest:
        length, [stdin, out], _, _ = socket.recv_fds(connection, _LENGTH_DIGITS, 2)
        with connection.makefile("rb") as file:
            request = json.loads(file.read(int(length)))
        return cls(request["argv"], request["env"], request["name"], stdin, out)


def serve_parent(meanwhile: Iterable[object] = ()) -> ForkRequest:
    """Fork for the process that started this one as a `ForkServer`. Returns only in forks, with their program."""
    control = socket.socket(fileno=os.dup(0))

    def accept() -> socket.socket:
        message, fds, _, _ = socket.recv_fds(control, len(_HANDED), 1)
        if not message:
            sys.exit()  # nobody can ask any more
        return socket.socket(fileno=fds[0])

    return serve(control, accept, meanwhile)


def serve(
    listening: socket.socket, accept: Callable[[], socket.socket], meanwhile: Iterable[object] = ()
) -> ForkRequest:
    """Fork for each connection that `accept` gives, and go on with `meanwhile` while none comes. Returns only in the
    forks, with the program to run."""
    if parent_death.HAS_KERNEL_SUPPORT and len(tasks := list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError(f"{len(tasks)} threads run, which forks would lack")
    wakeup_read, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    poll.register(wakeup_read, select.POLLIN)
    connections: dict[int, socket.socket] = {}
    steps, is_idle = iter(meanwhile), False
    while True:
        ready = {number for number, _ in poll.poll(None if is_idle else 0)}
        if not ready:
            is_idle = next(steps, steps) is steps
            continue
        for pid, connection in connections.items():
            if connection.fileno() in ready:  # the process that asked for it closed it, or has ended
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        if wakeup_read in ready:
            os.read(wakeup_read, 4096)
        for pid in list(connections):
            if (code := _exit_code(pid)) is not None:
                with connections.pop(pid) as connection, suppress(OSError):
                    poll.unregister(connection)
                    connection.sendall(b"%d" % code)
        if listening.fileno() in ready:
            connection = accept()
            server = os.getpid()
            if pid := os.fork():
                with suppress(ProcessLookupError, PermissionError):
                    os.setpgid(pid, pid)  # in parent and child, because either may run first
                connections[pid] = connection
                poll.register(
                    connection, select.POLLRDHUP
                )  # the request, which the fork reads, is not for us
                with suppress(OSError):
                    connection.sendall(b"%0*d" % (_PID_DIGITS, pid))
                continue
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # A shell makes background programs ignore this signal, and Twisted leaves an ignored signal alone.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setpgid(0, 0)
            parent_death.request_death_signal(server, signal.SIGKILL)()
            for end in (listening, *connections.values()):
                end.close()
            os.close(wakeup_read)
            os.close(wakeup_write)
            with connection:
                return ForkRequest.read(connection)


def _exit_code(pid: int) -> int | None:
    """Return the exit code of a child that has ended."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def show_as(name: str) -> None:
    """Set the name of this process in lists of processes (`ps -e`, `top`); Linux keeps 15 characters."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def run(request: ForkRequest) -> None:
    """Do with these arguments what a new interpreter would do."""
    for number, stream in {0: request.stdin, 1: request.out, 2: request.out}.items():
        os.dup2(stream, number)
    for given in (request.stdin, request.out):
        os.close(given)
    os.environ.clear()
    os.environ.update(request.env)
    time.tzset()
    show_as(request.name)
    _, kind, *arguments = request.argv
    if kind == "-m":
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *arguments[1:]]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(arguments[0], "<string>", "exec"), main.__dict__)  # noqa: S102  # as `python -c` does
    else:
        sys.argv = [kind, *arguments]
        runpy.run_path(kind, run_name="__main__")
