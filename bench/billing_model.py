"""A model provider that keeps a bill: what it would charge for each request, also for one whose caller is gone.

A request says what it wants by the last mark in it, `#KEY KIND`: `told` is answered at once, `tool` calls list_tasks
first, `silent` is answered without usage, `slow` takes seconds. It runs in a thread of its own, so that it outlives
those who ask.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

# In millionths for a token: of the input, of what was cached of it, and of the output.
PRICES: Final = (2, 1, 4)
PRICE_SETTING: Final = "2,4,1"
_BYTES_PER_TOKEN: Final = 4
_WORDS: Final = 24
_SLOW_WORDS: Final = 150
_SLOW_S: Final = 0.04  # between two words of a slow answer
_MARK: Final = re.compile(r"#([0-9a-f]{32}) (told|tool|silent|slow)")
_MEMORY: Final = {"memory", "episode"}
_NOTHING: Final = json.dumps({"operations": [], "summary": ""})


@dataclass(frozen=True, slots=True)
class Billed:
    """A request on the bill. `key`: of the first mark in it. `is_told`: its caller got the usage, as it seems here."""

    key: str
    is_memory: bool
    is_told: bool
    cost: int


class BillingModel:
    def __init__(self) -> None:
        self.bill: list[Billed] = []
        self.running = 0
        self.memory_delay_s = 0.0
        self.url = ""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> BillingModel:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _answer(self, http: web.Request) -> web.StreamResponse:
        body = await http.json()
        asked = json.dumps(body["messages"], ensure_ascii=False)
        marks = _MARK.findall(asked)
        key, kind = (marks[0][0], marks[-1][1]) if marks else ("", "told")
        schema = (body.get("response_format") or {}).get("json_schema", {}).get("name", "")
        size = len((asked + json.dumps(body.get("tools") or "")).encode())
        answer = _Answer(http, is_silent=kind == "silent", tokens=size // _BYTES_PER_TOKEN)
        self.running += 1
        try:
            if schema in _MEMORY:
                await asyncio.sleep(self.memory_delay_s)
                return answer.whole(_NOTHING)
            calls_tool = kind == "tool" and body["messages"][-1]["role"] != "tool"
            await answer.stream(
                _SLOW_WORDS if kind == "slow" else _WORDS, _SLOW_S if kind == "slow" else 0.0, calls_tool
            )
            return answer.response
        finally:
            self.running -= 1
            self.bill.append(Billed(key, schema in _MEMORY, answer.is_told, answer.cost))


class _Answer:
    """One answer, and the cost of the tokens that were made of it before it ended or broke off."""

    def __init__(self, http: web.Request, *, is_silent: bool, tokens: int) -> None:
        self._http, self._is_silent, self._input = http, is_silent, tokens
        self._cached = 0 if is_silent else tokens // 2
        self._bytes = 0
        self.is_told = False
        self.response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})

    @property
    def _output(self) -> int:
        return -(-self._bytes // _BYTES_PER_TOKEN)

    @property
    def cost(self) -> int:
        fresh, cached, output = PRICES
        return (self._input - self._cached) * fresh + self._cached * cached + self._output * output

    def _usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._input,
            "completion_tokens": self._output,
            "total_tokens": self._input + self._output,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }

    def whole(self, text: str) -> web.Response:
        self._bytes = len(text)
        self.is_told = True
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return web.json_response({**_HEAD, "choices": [choice], "usage": self._usage()})

    async def stream(self, words: int, pause_s: float, calls_tool: bool) -> None:
        await self.response.prepare(self._http)
        if calls_tool:
            function = {"name": "list_tasks", "arguments": "{}"}
            call = {"index": 0, "id": "call_0", "type": "function", "function": function}
            self._bytes += len("list_tasks{}")
            await self._send({"tool_calls": [call]})
        else:
            for number in range(words):
                word = f"boat {number}, "
                self._bytes += len(word)  # it is made before anybody learns that the caller is gone
                await self._send({"content": word})
                await asyncio.sleep(pause_s)
        told = {} if self._is_silent else {"usage": self._usage()}
        await self._send({}, "tool_calls" if calls_tool else "stop", **told)
        await self.response.write(b"data: [DONE]\n\n")
        self.is_told = not self._is_silent

    async def _send(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> None:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        chunk = {**_HEAD, "object": "chat.completion.chunk", "choices": choices, **more}
        await self.response.write(f"data: {json.dumps(chunk)}\n\n".encode())


_HEAD: Final = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "billing"}
