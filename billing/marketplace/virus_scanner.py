"""A virus scanner for packages: clamd, or another that speaks its protocol (INSTREAM). Off unless it is configured.

While it does not answer, nothing passes.
"""

from __future__ import annotations

import socket
from typing import IO, Final
from urllib.parse import urlsplit

from django.conf import settings

from adiuva.core.errors import Text
from billing.marketplace.findings import Finding

_PIECE_BYTES: Final = 256 * 1024
_MAX_ANSWER_BYTES: Final = 4096
_TIMEOUT_S: Final = 60.0


class ScannerAway(Exception):
    """The scanner did not answer, or not in its protocol."""


def is_on() -> bool:
    return bool(settings.PLUGIN_SCANNER)


def scan(package: IO[bytes]) -> list[Finding]:
    """Return the scanner's findings in a file. Raises ScannerAway."""
    package.seek(0)
    try:
        with _connection() as line:
            line.sendall(b"zINSTREAM\0")
            while piece := package.read(_PIECE_BYTES):
                line.sendall(len(piece).to_bytes(4, "big") + piece)
            line.sendall(bytes(4))
            answer = _answer(line)
    except OSError as error:
        raise ScannerAway from error
    if answer == "stream: OK":
        return []
    if answer.startswith("stream: ") and answer.endswith(" FOUND"):
        return [Finding("scanner", Text("a scanner for malicious programs has found something in it"))]
    raise ScannerAway


def _connection() -> socket.socket:
    where = urlsplit(settings.PLUGIN_SCANNER)
    if where.scheme == "unix":
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(_TIMEOUT_S)
        try:
            line.connect(where.path)
        except OSError:
            line.close()
            raise
        return line
    return socket.create_connection((where.hostname or "", where.port or 3310), timeout=_TIMEOUT_S)


def _answer(line: socket.socket) -> str:
    found = b""
    while not found.endswith(b"\0") and len(found) < _MAX_ANSWER_BYTES and (piece := line.recv(1024)):
        found += piece
    return found.rstrip(b"\0\n").decode("utf-8", "replace").strip()
