"""clamd: takes what it is shown by INSTREAM, and finds something in whatever has its mark. It misbehaves on order."""

from __future__ import annotations

import socket
import socketserver
import threading
from typing import Any, Final

MARK: Final = b"a file that scanners know"


class Clamd:
    """`with Clamd() as scanner`: `scanner.url` is for ADIUVA_PLUGIN_SCANNER, `seen` what it was shown.

    `answer`: what it says instead of what it found; None ends the connection without a word.
    """

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.answer: bytes | None = b""
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                outer._serve(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"tcp://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Clamd:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, line: socket.socket) -> None:
        with line.makefile("rb") as given:
            assert given.read(10) == b"zINSTREAM\0"
            content = b""
            while size := int.from_bytes(given.read(4), "big"):
                content += given.read(size)
        self.seen.append(content)
        if self.answer is None:
            return
        found = b"stream: Test-Signature FOUND" if MARK in content else b"stream: OK"
        line.sendall((self.answer or found) + b"\0")
