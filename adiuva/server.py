"""The web server process: `python -m adiuva.server`. uvicorn, or daphne where ADIUVA_SERVER says so."""

from __future__ import annotations

import os

# Larger than a frame may be, so that our own answer (4413) and not the server's own meets one that is too large.
_MAX_MESSAGE = 4 * 1024 * 1024


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adiuva.settings")
    from django.conf import settings

    if settings.SERVER == "daphne":
        _daphne(settings.HOST, settings.PORT)
    else:
        _uvicorn(settings.HOST, settings.PORT)


def _uvicorn(host: str, port: int) -> None:
    import uvicorn

    uvicorn.run(
        "adiuva.asgi:application",
        host=host,
        port=port,
        ws="websockets-sansio",
        ws_per_message_deflate=False,  # 65 KB a socket instead of 19
        ws_max_size=_MAX_MESSAGE,
        ws_ping_interval=None,  # the protocol has its own ping; this one would close with 1011
        lifespan="off",
        log_config=None,
        access_log=False,  # adiuva.observability logs requests, without their queries
        server_header=False,
        proxy_headers=False,  # it would believe the client's own X-Forwarded-For; ADIUVA_TRUSTED_PROXIES counts
        timeout_graceful_shutdown=5,
    )


def _daphne(host: str, port: int) -> None:
    from daphne.endpoints import build_endpoint_description_strings
    from daphne.server import Server  # first of all: it installs the reactor

    from adiuva.asgi import application

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


if __name__ == "__main__":
    main()
