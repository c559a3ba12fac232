"""A model that reads as told: an OpenAI-compatible server that makes a record of each line `task: …` or `note: …`.

`python -m bench.chaos.model PORT [SECONDS A CALL] [SHARE THAT FAILS]`
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from typing import Any, Final

from aiohttp import web

_LINE: Final = re.compile(r"^(task|note): (.+)$", re.MULTILINE)


def records_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of the document in a request."""
    text = str(body["messages"][2]["content"]).partition("\n\n")[2]
    found = []
    for kind, title in _LINE.findall(text):
        data = {"title": title} if kind == "task" else {"title": title, "content": f"About: {title}"}
        found.append({"table": f"{kind}s", "data": data})
    return found


class Model:
    """`calls` and `peak` are told at /seen: how many there were, and how many at once."""

    def __init__(self, seconds: float = 0.0, fails: float = 0.0) -> None:
        self.seconds, self.fails = seconds, fails
        self.calls = self.running = self.peak = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/seen", self._seen)
        return app

    async def _seen(self, request: web.Request) -> web.Response:
        return web.json_response({"calls": self.calls, "peak": self.peak})

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.calls += 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            if self.seconds:
                await asyncio.sleep(self.seconds)
        finally:
            self.running -= 1
        if random.random() < self.fails:
            return web.json_response({"error": {"message": "overloaded"}}, status=503)
        answer = json.dumps({"records": records_of(body)})
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
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        )


def main(port: str, seconds: str = "0", fails: str = "0") -> None:
    app = Model(float(seconds), float(fails)).app()
    web.run_app(app, host="127.0.0.1", port=int(port), print=lambda *_: None, access_log=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
