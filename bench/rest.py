"""CPU of REST requests in one process, compared with the same application behind Django's own ASGI handler.

In rounds by turns, each request alone; no server and no socket, so that only Django, its middleware and the view count.
Of a user who has something, the same is compared with FastAPI, which sends the same statements (bench.rest_peer).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from bench.harness import bench_servers, record
from bench.rest_peer import fastapi_application, record_request

PATHS: Final = (
    "/api/v1/health",
    "/api/v1/auth/me",
    "/api/v1/agents/local",
    "/api/v1/agents/runs",
    "/api/v1/chat/conversations",
    "/api/v1/memory/core",
)
# Beside FastAPI.
PEER_PATHS: Final = (
    "/api/v1/auth/me",
    "/api/v1/agents/local",
    "/api/v1/agents/runs",
    "/api/v1/memory/core",
)
ROUNDS, REQUESTS = 6, 60
AGENTS, RUNS, ENTRIES = 3, 20, 20


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


async def measure(
    applications: dict[str, Any], paths: Sequence[str], token: str
) -> dict[str, dict[str, list[float]]]:
    """The CPU of each round, in microseconds a request, by path and application."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(ROUNDS + 1):  # the first warms up
        for path in paths:
            for name, application in applications.items():
                began = time.process_time()
                for _ in range(REQUESTS):
                    status = await ask(application, path, token)
                    assert status == 200, f"{path}: {status}"
                took = (time.process_time() - began) * 1e6 / REQUESTS
                if number:
                    found[path][name].append(took)
    return found


def fill(token: str) -> None:
    """Agents, runs and entries of the memory, so that there is something to show."""
    from adiuva.accounts import services as accounts
    from agents import services
    from agents.models import Run
    from memory import entries
    from memory.entries import BY_HAND
    from memory.models import Tier

    user_id = accounts.authenticate(access_token=token).user_id
    for number in range(AGENTS):
        wanted = {"name": f"Invoices {number}", "device_id": "laptop", "directory_paths": [f"/docs/{number}"]}
        agent = services.create_local(user_id=user_id, values=wanted | {"data_types": ["tasks"]})
    for number in range(RUNS):
        Run.objects.create(
            user_id=user_id,
            agent=agent,
            agent_ref=agent.pk,
            agent_name_sealed=agent.name_sealed,
            agent_type=agent.type,
            device_id="laptop",
            state=Run.State.SUCCESS,
            files_seen=number,
        )
    for number in range(ENTRIES):
        entries.remember(
            user_id=user_id, tier=Tier.CORE, key=f"habit {number}", content="Tea at eight.", source=BY_HAND
        )


def main() -> None:
    with bench_servers():
        from django.core.asgi import get_asgi_application

        from adiuva.accounts import services
        from adiuva.http_handler import ThreadedHandler

        token = services.register(email="ada@example.com", password="correct horse battery").access_token
        ours = ThreadedHandler()
        applications = {"ours": ours, "django": get_asgi_application()}
        for path, cpu in asyncio.run(measure(applications, PATHS, token)).items():
            record(f"CPU of GET {path}", cpu["ours"], "µs", beside=cpu["django"], name="Django's handler")
        token = services.register(email="bo@example.com", password="correct horse battery").access_token
        fill(token)
        recordings = {path: record_request(path, token) for path in PEER_PATHS}
        peer = fastapi_application(recordings, os.environ["DATABASE_URL"])
        for path, cpu in asyncio.run(measure({"ours": ours, "fastapi": peer}, PEER_PATHS, token)).items():
            record(
                f"CPU of GET {path}, {len(recordings[path].statements)} statements",
                cpu["ours"],
                "µs",
                beside=cpu["fastapi"],
                name="FastAPI",
                ratio_most=1.5,
            )


if __name__ == "__main__":
    main()
