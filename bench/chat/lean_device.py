"""A device that answers tool calls at once and costs little, so that a bench measures the server and not the device.

`python -m bench.chat.lean_device URL TOKEN` prints "ready" once it has said hello, and runs until it is ended. The
WebSocket is spoken by hand, for text frames in one piece only; frames are masked with zeros, which RFC 6455 allows.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from typing import cast
from urllib.parse import urlsplit

import orjson

_TEXT, _CLOSE = 0x81, 0x88
_MASK = b"\0\0\0\0"


class LeanDevice(asyncio.Protocol):
    """`greeted` is done once its hello is acknowledged, or raises ConnectionError; `ended` when the connection is."""

    def __init__(self, host: str, path: str, token: str, device_id: str = "bench") -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self.greeted = asyncio.get_running_loop().create_future()
        self._hello = {
            "type": "device_hello",
            "device_id": device_id,
            "protocol": 2,
            "capabilities": ["dedupe"],
        }
        key = base64.b64encode(os.urandom(16)).decode()
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
        self._open = False
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request.encode())

    def connection_lost(self, error: Exception | None) -> None:
        if not self.greeted.done():
            self.greeted.set_exception(ConnectionError("the server has ended the connection"))
        self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._open:
            head, end, self._buffer = self._buffer.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            assert head.startswith(b"HTTP/1.1 101"), head
            self._open = True
            self._transport.write(_framed(orjson.dumps(self._hello)))
        answers = []
        at = 0
        while (frame := self._frame(at)) is not None:
            text, at = frame
            if (answer := self._answer(text)) is not None:
                answers.append(_framed(answer))
        self._buffer = self._buffer[at:]
        if answers:
            self._transport.write(b"".join(answers))

    def _frame(self, at: int) -> tuple[bytes, int] | None:
        """The text of the frame that begins at a place of the buffer, and where it ends."""
        buffer = self._buffer
        if len(buffer) < at + 4:
            return None
        if buffer[at] == _CLOSE:
            self._transport.close()
            return None
        assert buffer[at] == _TEXT, buffer[at]
        length, start = buffer[at + 1], at + 2
        if length >= 126:
            wide = 2 if length == 126 else 8
            length, start = int.from_bytes(buffer[start : start + wide]), start + wide
        end = start + length
        return (buffer[start:end], end) if len(buffer) >= end else None

    def _answer(self, text: bytes) -> bytes | None:
        frame = orjson.loads(text)
        match frame["type"]:
            case "tool_call":
                return orjson.dumps(
                    {"type": "tool_result", "id": frame["id"], "row": {"id": "1", "title": "x"}}
                )
            case "ping":
                return b'{"type":"pong"}'
            case "hello_ack":
                self.greeted.set_result(None)
        return None


def _framed(text: bytes) -> bytes:
    length = len(text)
    if length < 126:
        return bytes((_TEXT, 0x80 | length)) + _MASK + text
    return bytes((_TEXT, 0x80 | 126)) + length.to_bytes(2) + _MASK + text


async def connect(url: str, token: str, device_id: str = "bench") -> LeanDevice:
    """Raises OSError."""
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    _, device = await asyncio.get_running_loop().create_connection(
        lambda: LeanDevice(parts.netloc, parts.path or "/", token, device_id), parts.hostname, parts.port
    )
    await device.greeted
    return device


async def run(url: str, token: str) -> None:
    device = await connect(url, token)
    print("ready", flush=True)
    await device.ended


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
