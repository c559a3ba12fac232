"""The ASGI application: REST, admin and pages over HTTP, devices over the WebSocket."""

from __future__ import annotations

import os
from typing import Any

import django
from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import re_path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adiuva.settings")

from adiuva.checks import refuse_unsafe_start

refuse_unsafe_start()
django.setup(set_prefix=False)

# Models may be imported from here on.
from adiuva.body_guard import BodyGuard  # noqa: E402
from adiuva.body_streams import BodyStreams  # noqa: E402
from adiuva.http_handler import ThreadedHandler  # noqa: E402
from chat.routing import websocket_urlpatterns  # noqa: E402


async def refuse_websocket(scope: Any, receive: Any, send: Any) -> None:
    """Refuse any other path before the handshake; the router would raise an error instead."""
    await send({"type": "websocket.close"})


application = ProtocolTypeRouter(
    {
        "http": BodyStreams(BodyGuard(ThreadedHandler())),
        "websocket": URLRouter([*websocket_urlpatterns, re_path("", refuse_websocket)]),  # type: ignore[arg-type]
    }
)
