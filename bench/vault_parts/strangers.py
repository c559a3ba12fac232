"""Senders without a valid token: how much of their bodies is read."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from bench.harness import record
from bench.vault_parts.common import BLOCK, MIB


def read_by_server(connection: socket.socket) -> int:
    """How many bytes the other process took: what its kernel acknowledged, but for what waits there to be read."""
    acknowledged: int = struct.unpack_from(
        "Q", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 120
    )[0]
    ends = [f":{port:04X}" for port in (connection.getpeername()[1], connection.getsockname()[1])]
    for line in Path("/proc/net/tcp").read_text().splitlines():
        local, remote, _, queues = line.split()[1:5]
        if local.endswith(ends[0]) and remote.endswith(ends[1]):
            return acknowledged - int(queues.partition(":")[2], 16)
    return 0


ROUTES: Final = (
    "PUT /backup",
    "PATCH /storage/uploads/00000000-0000-4000-8000-000000000000",
    "POST /storage/records",
    "PUT /storage/records/00000000-0000-4000-8000-000000000000",
    "POST /storage/vectors/upsert",
    "POST /auth/login",
    "POST /chat",
)


def bad_token(base: str, name: str) -> None:
    most = max((_read_of(base, route), route) for route in ROUTES)
    record(f"{name}: read of a body of 1 GiB with a bad token, at most", most[0] / MIB, "MiB", most=2)


def _read_of(base: str, route: str) -> int:
    method, path = route.split()
    address = urlsplit(base)
    read = 0
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(
            f"{method} /api/v1{path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer no.such.token\r\n"
            f"Tus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
            f"Content-Type: {'application/json' if method == 'POST' else 'application/offset+octet-stream'}\r\n"
            f"Content-Length: {1024 * MIB}\r\n\r\n".encode()
        )
        connection.setblocking(False)
        left, end = 1024 * MIB, time.monotonic() + 30
        while left and time.monotonic() < end:
            try:
                left -= connection.send(BLOCK)
            except BlockingIOError:
                time.sleep(0.001)
            except OSError:
                break
            with contextlib.suppress(OSError):
                read = max(read, read_by_server(connection))
    return read
