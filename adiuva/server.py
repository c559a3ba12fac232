"""The web server process: `python -m adiuva.server`. uvicorn, or daphne where ADIUVA_SERVER says so."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
from typing import Any

# Larger than a frame may be, so that our own answer (4413) and not the server's own meets one that is too large.
_MAX_MESSAGE = 4 * 1024 * 1024
_SOCKETS_S = 1.0  # for sockets to close
_REQUESTS_S = 3  # for what is left to end by itself
_LARGE = 4 << 20  # bytes: password hashes take 19 MiB each
_M_MMAP_THRESHOLD = -3  # glibc's malloc.h


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adiuva.settings")
    from django.conf import settings

    _give_large_blocks_back()
    if settings.SERVER == "daphne":
        _daphne(settings.HOST, settings.PORT)
    else:
        _uvicorn(settings.HOST, settings.PORT)


def _uvicorn(host: str, port: int) -> None:
    import uvicorn

    import adiuva.asgi  # noqa: F401  # uvicorn finds it by name

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: Any = None) -> None:
            for listening in self.servers:
                listening.close()
            await _leave()
            await super().shutdown(sockets)

    _spare_collections()
    config = uvicorn.Config(
        "adiuva.asgi:application",
        host=host,
        port=port,
        ws="websockets-sansio",
        ws_per_message_deflate=False,  # 65 KB a socket instead of 19
        ws_max_size=_MAX_MESSAGE,
        ws_ping_interval=None,  # the protocol has its own ping; this one would close with 1011
        lifespan="off",
        log_config=None,
        access_log=False,  # adiuva.core.logging logs requests, without their queries
        server_header=False,
        proxy_headers=False,  # it would believe the client's own X-Forwarded-For; ADIUVA_TRUSTED_PROXIES counts
        timeout_graceful_shutdown=_REQUESTS_S,
    )
    server = Server(config)
    try:
        server.run()
    except KeyboardInterrupt:
        pass
    if not server.started:
        sys.exit(3)  # as uvicorn's own command does


def _daphne(host: str, port: int) -> None:
    from daphne.endpoints import build_endpoint_description_strings
    from daphne.server import Server as Daphne  # first of all: it installs the reactor
    from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
    from twisted.internet.defer import Deferred

    from adiuva.asgi import application

    class Socket(WebSocketProtocol):  # type: ignore[misc]  # daphne has no types
        def serverClose(self, code: int | None = None) -> None:
            self.sendCloseFrame(code=code or 1000)  # `sendClose` refuses to say 1012

    WebSocketFactory.protocol = Socket

    class Server(Daphne):  # type: ignore[misc]
        def kill_all_applications(self) -> Deferred[None]:
            """What the reactor waits for before it stops."""
            return Deferred.fromFuture(asyncio.ensure_future(self._end()))

        async def _end(self) -> None:
            await _leave()
            running = [
                found for each in self.connections.values() if (found := each.get("application_instance"))
            ]
            if running:
                await asyncio.wait(running, timeout=_REQUESTS_S)
            for one in running:
                one.cancel()
            if running:  # what does not heed it ends with the process
                await asyncio.wait(running, timeout=_REQUESTS_S)

    _spare_collections()
    Server(
        application,
        endpoints=build_endpoint_description_strings(host=host, port=port),
        websocket_timeout=-1,  # a device may stay connected for weeks
        websocket_max_message_size=_MAX_MESSAGE,
        websocket_max_frame_size=_MAX_MESSAGE,
        ping_interval=20,
        ping_timeout=600,  # the protocol has its own ping
        server_name="",
    ).run()


async def _leave() -> None:
    """The process was asked to end. Turns first, while their devices can still answer; then the sockets, which are told
    to come back."""
    from adiuva.devices import connections
    from adiuva.devices.protocol import Close
    from chat.turn_registry import registry

    await registry().stop()
    await connections.current().close_all(Close.RESTARTING, within_s=_SOCKETS_S)


def _give_large_blocks_back() -> None:
    """Have glibc return large blocks to the system when they are freed. By itself it learns to keep them, in each
    thread that ever hashed a password: 240 registrations, 12 at once, took a process from 162 MB to 413, now to 178."""
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
    except (OSError, AttributeError):  # another system's allocator
        pass


def _spare_collections() -> None:
    """Keep the garbage collector from what stays. A full collection went through all that is loaded, 0.4 s in which no
    token moved; and what streams make lives for minutes, so that one every 700 objects finds nothing. Rarer full ones
    than these let the cycles that REST requests leave pile up: 3,000 of them took a process to 360 MB, now to 250."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 5)


if __name__ == "__main__":
    main()
