"""A device that chats: it answers tool calls at once from twenty tasks, and records when each frame arrived."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import uuid4

import orjson
from websockets.asyncio.client import ClientConnection, connect

TASKS = [
    {
        "id": f"{place:02d}9f0c3de4b54a17",
        "title": f"Call the harbour about pier {place}",
        "status": "todo" if place % 3 else "in_progress",
        "priority": ("high", "medium", "low")[place % 3],
        "dueDate": 1_795_000_000_000 + place * 86_400_000,
        "projectId": "p1c0ffee00000001",
        "createdAt": 1_790_000_000_000,
    }
    for place in range(20)
]
PROJECTS = [{"id": "p1c0ffee00000001", "name": "Harbour Café", "status": "active"}]


@dataclass
class TimedAnswer:
    """One answer. Times are of the monotonic clock, in ns; `texts` holds (arrival, length) of each stream_text."""

    requested_ns: int
    texts: list[tuple[int, int]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)

    @property
    def first_ms(self) -> float:
        return (self.texts[0][0] - self.requested_ns) / 1e6


class Device:
    def __init__(self, base: str, token: str) -> None:
        self._url = base.replace("http", "ws") + "/api/v1/ws/device"
        self._headers = {"Authorization": f"Bearer {token}"}
        self._socket: ClientConnection

    async def __aenter__(self) -> Self:
        self._socket = await connect(
            self._url, additional_headers=self._headers, compression=None, ping_interval=None
        )
        hello = {"type": "device_hello", "device_id": "bench", "protocol": 2, "agent_ids": []}
        await self._send(hello | {"capabilities": ["dedupe", "batch", "manifest", "approval"]})
        assert orjson.loads(await self._socket.recv())["type"] == "hello_ack"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._socket.close()

    async def ask(self, message: str, **fields: Any) -> TimedAnswer:
        """Send a request and receive frames until the end of its stream."""
        request = {"type": "home_request", "message": message, "request_id": uuid4().hex, **fields}
        answer = TimedAnswer(time.monotonic_ns())
        await self._send(request)
        while not answer.end:
            raw = await self._socket.recv(decode=False)
            now = time.monotonic_ns()
            frame = orjson.loads(raw)
            match frame["type"]:
                case "stream_text":
                    answer.texts.append((now, len(frame["chunk"])))
                case "stream_end":
                    answer.end = frame
                case "tool_call":
                    await self._send({"type": "tool_result", **_result(frame)})
                case "tool_batch":
                    results = [_result(call) for call in frame["calls"]]
                    await self._send({"type": "tool_batch_result", "results": results})
                case "ping":
                    await self._send({"type": "pong"})
        return answer

    async def _send(self, frame: dict[str, Any]) -> None:
        await self._socket.send(orjson.dumps(frame), text=True)


def _result(call: dict[str, Any]) -> dict[str, Any]:
    return {"id": call["id"], "rows": TASKS if call["table"] == "tasks" else PROJECTS}
