"""Counts the statements that a process sends to PostgreSQL: a TCP proxy that looks at the kind of each message."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing
from typing import Final
from urllib.parse import urlsplit, urlunsplit

# Of a message of the protocol: its kind, one byte, and its length without that.
_HEAD: Final = 5
_EMPTY: Final = b"\0"


class StatementCounter:
    """A process that is given `url` as its database is counted.

    `sent`: how many statements so far, BEGIN and COMMIT among them; `texts`: what they were. `checks`: how many empty
    ones, by which a pool sees whether a connection works.
    """

    def __init__(self, database_url: str) -> None:
        self.texts: list[str] = []
        self.checks = 0
        parts = urlsplit(database_url)
        self._host, self._port = parts.hostname or "", parts.port or 5432
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="statement counter", daemon=True).start()
        server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connected, "127.0.0.1", 0), self._loop
        ).result()
        port = server.sockets[0].getsockname()[1]
        credentials = parts.netloc.rpartition("@")[0]
        self.url = urlunsplit(parts._replace(netloc=f"{credentials}@127.0.0.1:{port}"))

    @property
    def sent(self) -> int:
        return len(self.texts)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(self._host, self._port)
        back = asyncio.create_task(_copy(from_server, writer))
        with closing(to_server):
            try:
                await self._pass_on(reader, to_server)
            except (asyncio.IncompleteReadError, OSError):
                pass  # one of both has gone
            finally:
                back.cancel()
                writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        while True:  # until the session begins: lengths alone, and perhaps a request for TLS that is refused
            length = await reader.readexactly(4)
            body = await reader.readexactly(int.from_bytes(length, "big") - 4)
            to_server.write(length + body)
            if body[:2] == b"\0\x03":  # the version of the protocol
                break
        prepared: dict[bytes, str] = {}  # by name
        bound = b""  # of the portal without a name, which is the only one
        while True:
            head = await reader.readexactly(_HEAD)
            body = await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
            match head[:1]:
                case b"Q" if body == _EMPTY:
                    self.checks += 1
                case b"Q":
                    self.texts.append(body[:-1].decode())
                case b"P":
                    name, text, _ = body.split(b"\0", 2)
                    prepared[name] = text.decode()
                case b"B":
                    _, bound, _ = body.split(b"\0", 2)
                case b"E":
                    self.texts.append(prepared.get(bound, ""))
            to_server.write(head + body)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()
