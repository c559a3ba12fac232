"""An OpenAI-compatible server that extracts one record from each line `task: …` or `note: …` of a document.

`python -m bench.chaos.extraction_model PORT [SECONDS_PER_CALL] [FAILURE_RATE] [SLOTS]`

With SLOTS it answers so many requests at a time, and the others wait in line. GET /counts tells how many requests came,
were answered, and were given up by who had asked.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from collections import Counter
from typing import Any, Final

from aiohttp import web

_LINE: Final = re.compile(r"^(task|note): (.+)$", re.MULTILINE)


def records_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of the document in a request."""
    text = str(body["messages"][1]["content"])
    found = []
    for kind, title in _LINE.findall(text):
        data = {"title": title} if kind == "task" else {"title": title, "content": f"About: {title}"}
        found.append({"table": f"{kind}s", "data": data})
    return found


class Model:
    def __init__(self, seconds: float = 0.0, failure_rate: float = 0.0, slots: int = 0) -> None:
        self.seconds, self.failure_rate = seconds, failure_rate
        self.slots = asyncio.Semaphore(slots or 1_000_000)
        self.counts: Counter[str] = Counter(asked=0, answered=0, given_up=0, most_at_once=0)
        self.under_way = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/counts", self._tell)
        return app

    async def _tell(self, _: web.Request) -> web.Response:
        return web.json_response(self.counts)

    async def _chat(self, request: web.Request) -> web.Response:
        self.counts["asked"] += 1
        self.under_way += 1
        self.counts["most_at_once"] = max(self.counts["most_at_once"], self.under_way)
        try:
            answer = await self._answer(request)
        except asyncio.CancelledError:
            self.counts["given_up"] += 1
            raise
        finally:
            self.under_way -= 1
        self.counts["answered"] += 1
        return answer

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        async with self.slots:
            await asyncio.sleep(self.seconds)
        if random.random() < self.failure_rate:
            return web.json_response({"error": {"message": "overloaded"}}, status=503)
        answer = json.dumps({"records": records_of(body)})
        asked, said = len(json.dumps(body["messages"])) // 4, len(answer) // 4
        return web.json_response(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 0,
                "model": "scripted",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": answer},
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
            }
        )


def main(port: str, seconds: str = "0", failure_rate: str = "0", slots: str = "0") -> None:
    app = Model(float(seconds), float(failure_rate), int(slots)).app()
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(port),
        print=lambda *_: None,
        access_log=None,
        handler_cancellation=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
