"""The ASGI application: REST, admin and pages over HTTP, devices over the socket."""

from __future__ import annotations

import os
from typing import Any

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import re_path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adiuva.settings")

from adiuva.checks import refuse_unsafe_start

refuse_unsafe_start()
http = get_asgi_application()

# Django is set up from here on, so models may be imported.
from chat.routing import websocket_urlpatterns  # noqa: E402


async def no_socket(scope: Any, receive: Any, send: Any) -> None:
    """Any other path: refused before the handshake, where the router alone would raise an error."""
    await send({"type": "websocket.close"})


application = ProtocolTypeRouter(
    {
        "http": http,
        "websocket": URLRouter([*websocket_urlpatterns, re_path("", no_socket)]),  # type: ignore[arg-type]
    }
)
