"""The least that streams words: aiohttp reads the model, uvicorn's socket sends them on, and nothing else is done.

No sign-in, no checks, no log, no resume: what a streamed word costs here is the floor that the product's is measured
against. `uvicorn bench.chat.bare_socket:application`, with the model's address in BARE_API_BASE.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import orjson

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    tasks = set()
    async with aiohttp.ClientSession() as session:
        while (message := await receive())["type"] == "websocket.receive":
            frame = orjson.loads(message["text"])
            if frame["type"] == "device_hello":
                await _send(send, {"type": "hello_ack"})
            elif frame["type"] == "home_request":
                tasks.add(asyncio.create_task(_answer(session, send, frame)))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(session: aiohttp.ClientSession, send: Send, asked: dict[str, Any]) -> None:
    key, seq = asked["request_id"], 0
    body = {"messages": [{"role": "user", "content": asked["message"]}], "stream": True}
    await _send(send, {"type": "stream_start", "request_id": key})
    async with session.post(f"{os.environ['BARE_API_BASE']}/chat/completions", json=body) as answer:
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            if text := orjson.loads(line[6:])["choices"][0]["delta"].get("content"):
                await _send(send, {"type": "stream_text", "request_id": key, "chunk": text, "seq": seq})
                seq += 1
    await _send(send, {"type": "stream_end", "request_id": key, "finish": "stop"})


async def _send(send: Send, frame: dict[str, Any]) -> None:
    await send({"type": "websocket.send", "text": orjson.dumps(frame).decode()})
