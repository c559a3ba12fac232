"""ASGI application: REST, admin and pages over HTTP, devices over the WebSocket."""

from __future__ import annotations

import os

import django
from channels.routing import ProtocolTypeRouter

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adiuva.settings")

from adiuva.checks import refuse_unsafe_start

refuse_unsafe_start()
django.setup(set_prefix=False)

# Models may be imported from here on.
from adiuva.body_guard import BodyGuard  # noqa: E402
from adiuva.body_streams import BodyStreams  # noqa: E402
from adiuva.http_handler import ThreadedHandler  # noqa: E402
from chat.routing import serve_websocket  # noqa: E402

application = ProtocolTypeRouter(
    {
        "http": BodyStreams(BodyGuard(ThreadedHandler())),
        "websocket": serve_websocket,
    }
)
