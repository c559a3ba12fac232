"""Delay of sockets while others wait 200 ms for the database.

`python -m bench.slow_database [SECONDS]`, so long each phase.

Fifty sockets send and get their echoes, first alone and then beside five sockets that make the database sleep. Adiuva's
consumer is compared with Channels' own, each in a real uvicorn process.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from adiuva.embedded.ports import free_port
from bench.harness import BenchServers, bench_servers, percentile, record

ASKING, WAITING = 50, 5
PHASE_S = 4.0
PAUSE_S = 0.02


def application() -> Any:
    """ASGI application: `/ours` and `/stock` echo what they receive; on "sleep" they sleep in the database first."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adiuva.settings")
    import django

    django.setup()
    from channels.db import database_sync_to_async
    from channels.generic.websocket import AsyncWebsocketConsumer
    from channels.routing import URLRouter
    from django.db import connection
    from django.urls import path

    from adiuva.core import db
    from adiuva.core.websocket import SocketConsumer

    def wait_for_the_database() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.2)")

    class Ours(SocketConsumer):
        async def connect(self) -> None:
            await self.accept()
            await self.subscribe()

        async def receive(self, text: str | None) -> None:
            if text == "sleep":
                await db.run(wait_for_the_database)
            await self.send_text(text or "")

        async def disconnect(self) -> None:
            pass

    class Stock(AsyncWebsocketConsumer):  # type: ignore[misc]
        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            if text_data == "sleep":
                await database_sync_to_async(wait_for_the_database)()
            await self.send(text_data=text_data)

    return URLRouter([path("ours", Ours.as_asgi()), path("stock", Stock.as_asgi())])


async def ask(socket: ClientConnection, word: str, until: float, took: list[float]) -> None:
    while time.perf_counter() < until:
        asked = time.perf_counter()
        await socket.send(word)
        await socket.recv()
        took.append((time.perf_counter() - asked) * 1000)
        if word != "sleep":
            await asyncio.sleep(PAUSE_S)


async def measure_p99(
    asking: list[ClientConnection], waiting: list[ClientConnection], seconds: float
) -> float:
    """The p99 of the asking sockets' answers, in milliseconds."""
    took: list[float] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(
        *(ask(socket, "hello", until, took) for socket in asking),
        *(ask(socket, "sleep", until, []) for socket in waiting),
    )
    return percentile(took, 99)


async def compare(base: str, kind: str, seconds: float) -> tuple[list[float], list[float]]:
    url = f"{base.replace('http', 'ws')}/{kind}"
    sockets = [await connect(url, compression=None, ping_interval=None) for _ in range(ASKING + WAITING)]
    asking, waiting = sockets[:ASKING], sockets[ASKING:]
    await measure_p99(asking, [], seconds)  # warm
    # By turns, so that both phases see the same machine.
    quiet, beside = [], []
    for _ in range(3):
        quiet.append(await measure_p99(asking, [], seconds))
        beside.append(await measure_p99(asking, waiting, seconds))
    for socket in sockets:
        await socket.close()
    return quiet, beside


def main(servers: BenchServers, seconds: float = PHASE_S) -> None:
    port = free_port()
    command = ["-m", "uvicorn", "--factory", "bench.slow_database:application", "--port", str(port)]
    child = servers.run(
        "slow-database", *command, "--ws", "websockets-sansio", "--lifespan", "off", "--log-level", "error"
    )
    child.wait_until(lambda: _listens(port), within_s=60, every_s=0.1)
    print(f"{ASKING} sockets that ask, next to {WAITING} that wait 200 ms for the database each time")
    for kind, name, aim in (("ours", "Adiuva's consumer", 1.3), ("stock", "Channels' consumer", None)):
        quiet, beside = asyncio.run(compare(f"http://127.0.0.1:{port}", kind, seconds))
        what = f"{name}: p99 next to waiting sockets"
        record(what, beside, "ms", beside=quiet, name="alone", ratio_most=aim)


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    with bench_servers() as started:
        main(started, *map(float, sys.argv[1:]))
    sys.exit(0)
