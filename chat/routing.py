"""Routes a WebSocket to its consumer."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final

from chat.consumer import ClientConsumer

_DEVICE_SOCKET: Final = "/api/v1/ws/device"


def serve_websocket(scope: Any, receive: Any, send: Any) -> Awaitable[None]:
    """Serve a WebSocket as a router would, but without frames and a scope's copy, which each socket would hold."""
    if scope["path"] != _DEVICE_SOCKET:
        return _refuse(scope, receive, send)
    served: Awaitable[None] = ClientConsumer()(scope, receive, send)
    return served


async def _refuse(scope: Any, receive: Any, send: Any) -> None:
    """Refuse before the handshake."""
    await send({"type": "websocket.close"})
