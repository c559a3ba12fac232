"""CPU of REST requests in one process, compared with the same application behind Django's own ASGI handler.

In rounds by turns, each request alone; no server and no socket, so that only Django, its middleware and the view count.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Any, Final

from bench.harness import bench_servers, record

PATHS: Final = (
    "/api/v1/health",
    "/api/v1/auth/me",
    "/api/v1/agents/local",
    "/api/v1/agents/runs",
    "/api/v1/chat/conversations",
    "/api/v1/memory/core",
)
ROUNDS, REQUESTS = 6, 60


async def ask(application: Any, path: str, token: str) -> int:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"accept", b"application/json"),
            (b"authorization", f"Bearer {token}".encode()),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    asked, answered, status = False, asyncio.Event(), 0

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await answered.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            answered.set()

    await application(scope, receive, send)
    return status


async def measure(applications: dict[str, Any], token: str) -> dict[str, dict[str, list[float]]]:
    """The CPU of each round, in microseconds a request, by path and application."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(ROUNDS + 1):  # the first warms up
        for path in PATHS:
            for name, application in applications.items():
                began = time.process_time()
                for _ in range(REQUESTS):
                    status = await ask(application, path, token)
                    assert status == 200, f"{path}: {status}"
                took = (time.process_time() - began) * 1e6 / REQUESTS
                if number:
                    found[path][name].append(took)
    return found


def main() -> None:
    with bench_servers():
        from django.core.asgi import get_asgi_application

        from adiuva.accounts import services
        from adiuva.http_handler import ThreadedHandler

        token = services.register(email="ada@example.com", password="correct horse battery").access_token
        applications = {"ours": ThreadedHandler(), "django": get_asgi_application()}
        for path, cpu in asyncio.run(measure(applications, token)).items():
            record(f"CPU of GET {path}", cpu["ours"], "µs", beside=cpu["django"], name="Django's handler")


if __name__ == "__main__":
    main()
