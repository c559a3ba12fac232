"""Web server process: `python -m adiuva.server`. Runs uvicorn, or daphne if ADIUVA_SERVER says so."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from typing import Any, Final

from adiuva.core import garbage

# Above the protocol's limit of 1 MiB, so that our own close code (4413) answers a frame that is too large.
_MAX_WEBSOCKET_MESSAGE_BYTES: Final = 4 * 1024 * 1024
# Requests in progress may take this long to finish after the shutdown hooks; then they are cancelled.
_FINISH_REQUESTS_S: Final = 3
# Blocks of this size and more go back to the system when they are freed. A password hash takes 19 MiB.
_RETURN_BLOCKS_FROM_BYTES: Final = 4 << 20
_M_MMAP_THRESHOLD: Final = -3  # mallopt's parameter, from glibc's malloc.h


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adiuva.settings")
    garbage.collect_rarely_while_loading()
    from django.conf import settings

    from adiuva.core import metrics, tracing

    _return_large_blocks()
    metrics.serve()
    tracing.start("web")
    if settings.SERVER == "daphne":
        _run_daphne(settings.HOST, settings.PORT)
    else:
        _run_uvicorn(settings.HOST, settings.PORT)
    tracing.stop()
    _exit_without_finalizing()


def _run_uvicorn(host: str, port: int) -> None:
    import uvicorn

    import adiuva.asgi  # noqa: F401  # uvicorn finds it by name
    from adiuva.core import shutdown
    from adiuva.uvicorn_protocol import KEEP_ALIVE_S, TimedH11Protocol
    from adiuva.uvicorn_websocket import PushingWebSocket

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: Any = None) -> None:
            for listening in self.servers:
                listening.close()
            await shutdown.run_hooks()
            await super().shutdown(sockets)

    garbage.tune()
    config = uvicorn.Config(
        "adiuva.asgi:application",
        host=host,
        port=port,
        http=TimedH11Protocol,
        ws=PushingWebSocket,
        ws_per_message_deflate=False,  # a socket costs 19 KB of memory without it, 65 KB with it
        ws_max_size=_MAX_WEBSOCKET_MESSAGE_BYTES,
        ws_ping_interval=None,  # the protocol has its own ping; uvicorn's would close with 1011
        lifespan="off",
        log_config=None,
        access_log=False,  # adiuva.core.logging logs requests, without their query strings
        server_header=False,
        proxy_headers=False,  # uvicorn would trust any client's X-Forwarded-For; see ADIUVA_TRUSTED_PROXIES
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=_FINISH_REQUESTS_S,
    )
    server = Server(config)
    try:
        server.run()
    except KeyboardInterrupt:
        pass
    if not server.started:
        sys.exit(3)  # the exit code of uvicorn's own command


def _run_daphne(host: str, port: int) -> None:
    import daphne.server  # noqa: F401  # before all else of Twisted: it installs the reactor

    from adiuva.asgi import application  # isort: split
    from adiuva import daphne_server

    garbage.tune()
    daphne_server.make(
        application,
        host=host,
        port=port,
        max_message_bytes=_MAX_WEBSOCKET_MESSAGE_BYTES,
        finish_requests_s=_FINISH_REQUESTS_S,
    ).run()


def _exit_without_finalizing() -> None:
    """End the process now that everything has been closed in order.

    While the interpreter finalizes, redis-py's connection pools import a module in `__del__`. If a daemon thread was
    stopped while it held the import lock, that import waits for ever, as processes under daphne did on a busy machine.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _return_large_blocks() -> None:
    """Have glibc return large freed blocks to the system.

    By default glibc keeps them, in each thread that ever hashed a password: 240 registrations, 12 at a time, grew a
    process from 162 MB to 413 MB. With this it stays at 178 MB.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _RETURN_BLOCKS_FROM_BYTES)
    except (OSError, AttributeError):  # another system's allocator
        pass


if __name__ == "__main__":
    main()
