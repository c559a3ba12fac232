"""The command by which pytest-xdist starts a test process: `… -u -c PROGRAM`, as an interpreter is called.

It has the server of `tests.worker_forks` fork a process that uses its streams, passes signals on to it, and ends as it
does. Without that server it becomes the interpreter.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

from adiuva.embedded import forks
from adiuva.embedded.processes import Child, python, tail

SOCKET_VARIABLE = "TESTS_WORKER_FORKS_SOCKET"


def _fork(program: str) -> forks.ForkedProcess:
    """A process that runs the program with our streams. Raises OSError if there is no server."""
    # A fork's errors go where its output goes, which pytest-xdist reads.
    to_our_errors = f"import os; os.dup2(os.open('/proc/{os.getpid()}/fd/2', os.O_WRONLY | os.O_APPEND), 2)"
    child = Child("pytest", python("-c", f"{to_our_errors}\n{program}"), Path("/dev/stdout"))
    child.stdin_from = sys.stdin.fileno()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[SOCKET_VARIABLE])
    return forks.ask(connection, child)


def _run(program: str) -> int:
    try:
        process = _fork(program)
    except OSError as error:
        log = Path(os.environ[SOCKET_VARIABLE] + ".log")
        sys.stderr.write(f"Test processes are started anew: {error}\n{tail(log, 20)}\n")
        os.execv(sys.executable, python("-u", "-c", program))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: process.send_signal(number))
    return process.wait()


if __name__ == "__main__":
    sys.exit(_run(sys.argv[-1]))
