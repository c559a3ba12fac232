"""The least that a turn of two model calls is made of: aiohttp, uvicorn's socket and eight statements, nothing else.

No sign-in, checks, seals, prompts, memory, log or resume: its CPU is the floor that a turn's is measured against. Each
request to the model is as long as the product's, the rows of the device's answer are read, and the statements are
prepared and each of a few values. `uvicorn bench.chat.bare_turn:application`, with the model's address in
BARE_API_BASE and the database's in DATABASE_URL.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID, uuid4

import aiohttp
import orjson
import psycopg

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

# As long as what the product sends of its prompt and its tools.
_PROMPT: Final = "You help with tasks and notes. " * 355
_SEALED: Final = b"x" * 300
_CREATE: Final = """
CREATE TEMPORARY TABLE turns (id uuid PRIMARY KEY, asked text, state text, calls int, sealed bytea, ended timestamptz)
"""
_CLAIM: Final = "INSERT INTO turns (id, asked, state, calls, sealed) VALUES (%s, %s, 'running', 0, %s)"
_FIND: Final = "SELECT id, asked, state, calls, sealed FROM turns WHERE id = %s"
_STORE: Final = "UPDATE turns SET state = %s, calls = calls + 1, sealed = %s, ended = now() WHERE id = %s"


class _Socket:
    """One device's, with a connection to the database."""

    def __init__(
        self, http: aiohttp.ClientSession, database: psycopg.AsyncConnection[Any], send: Send
    ) -> None:
        self._http, self._database, self._send = http, database, send
        self._result: asyncio.Future[dict[str, Any]]

    async def answer(self, asked: dict[str, Any]) -> None:
        key, turn = asked["request_id"], uuid4()
        await self._execute(_CLAIM, turn, key, _SEALED)
        await self._execute(_FIND, turn)
        await self.send({"type": "stream_start", "request_id": key})
        messages = [{"role": "system", "content": _PROMPT}, {"role": "user", "content": asked["message"]}]
        _, call = await self._ask(messages, key)
        await self._execute(_FIND, turn)
        rows = []
        if call is not None:
            self._result = asyncio.get_running_loop().create_future()
            wanted = {"id": uuid4().hex, "action": "select", "table": "tasks", "filters": {}, "limit": 200}
            await self.send({"type": "tool_batch", "calls": [wanted]})
            rows = (await self._result)["results"][0]["rows"]
        said = "\n".join(f"{row['title']} {row['status']} {row['priority']}" for row in rows)
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_0", "content": said},
        ]
        text, _ = await self._ask(messages, key)
        await self._store(turn, text.encode())
        usage = {"model_calls": 2}
        await self.send({"type": "stream_end", "request_id": key, "finish": "stop", "usage": usage})
        await self._execute(_FIND, turn)

    def take(self, frame: dict[str, Any]) -> None:
        self._result.set_result(frame)

    async def send(self, frame: dict[str, Any]) -> None:
        await self._send({"type": "websocket.send", "text": orjson.dumps(frame).decode()})

    async def _ask(self, messages: list[dict[str, Any]], key: str) -> tuple[str, dict[str, Any] | None]:
        """The model's answer, whose text is shown as it comes, and the tool that it calls."""
        text, call, shown = "", None, 0
        body = orjson.dumps({"messages": messages, "stream": True})
        async with self._http.post(f"{os.environ['BARE_API_BASE']}/chat/completions", data=body) as answer:
            async for piece in answer.content.iter_any():
                for line in piece.split(b"\n"):
                    if not line.startswith(b"data: {"):
                        continue
                    delta = orjson.loads(line[6:])["choices"][0]["delta"]
                    text += delta.get("content") or ""
                    call = (delta.get("tool_calls") or [call])[0]
                if len(text) > shown:
                    await self.send(
                        {"type": "stream_text", "request_id": key, "chunk": text[shown:], "seq": shown}
                    )
                    shown = len(text)
        return text, call

    async def _store(self, turn: UUID, sealed: bytes) -> None:
        async with self._database.transaction():
            await self._execute(_STORE, "stop", sealed, turn)
            await self._execute(_STORE, "stop", sealed, turn)

    async def _execute(self, statement: str, *values: Any) -> None:
        cursor = await self._database.execute(statement, values, prepare=True, binary=True)
        if cursor.description is not None:
            await cursor.fetchall()


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    database = await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"], autocommit=True)
    tasks: set[asyncio.Task[None]] = set()
    async with database, aiohttp.ClientSession() as http:
        await database.execute(_CREATE)
        socket = _Socket(http, database, send)
        while (message := await receive())["type"] == "websocket.receive":
            frame = orjson.loads(message["text"])
            match frame["type"]:
                case "device_hello":
                    await socket.send({"type": "hello_ack"})
                case "home_request":
                    task = asyncio.create_task(socket.answer(frame))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                case "tool_batch_result":
                    socket.take(frame)
        await asyncio.gather(*tasks, return_exceptions=True)
