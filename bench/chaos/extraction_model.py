"""An OpenAI-compatible server that extracts one record from each line `task: …` or `note: …` of a document.

`python -m bench.chaos.extraction_model PORT [SECONDS_PER_CALL] [FAILURE_RATE]`
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
    text = str(body["messages"][1]["content"])
    found = []
    for kind, title in _LINE.findall(text):
        data = {"title": title} if kind == "task" else {"title": title, "content": f"About: {title}"}
        found.append({"table": f"{kind}s", "data": data})
    return found


class Model:
    def __init__(self, seconds: float = 0.0, failure_rate: float = 0.0) -> None:
        self.seconds, self.failure_rate = seconds, failure_rate

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        await asyncio.sleep(self.seconds)
        if random.random() < self.failure_rate:
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


def main(port: str, seconds: str = "0", failure_rate: str = "0") -> None:
    app = Model(float(seconds), float(failure_rate)).app()
    web.run_app(app, host="127.0.0.1", port=int(port), print=lambda *_: None, access_log=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
