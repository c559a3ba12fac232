"""Messages between processes about running turns."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from channels.layers import get_channel_layer

from adiuva.core.errors import AdiuvaError
from chat.stream import StreamFrame

_TRIES: Final = 20
_AGAIN_S: Final = 0.25


@dataclass(frozen=True)
class ChannelListener:
    """A client's socket in another process."""

    channel: str

    async def hear(self, request_id: str, entries: Sequence[StreamFrame]) -> bool:
        message = {"type": "stream", "request": request_id, "texts": [entry.text for entry in entries]}
        for _ in range(_TRIES):
            try:
                return bool(await get_channel_layer().send(self.channel, message))
            except ConnectionError:
                await asyncio.sleep(_AGAIN_S)  # what comes twice is known by its seq
        return False


def error_message(error: AdiuvaError, ref: str) -> dict[str, Any]:
    """For a socket of another process."""
    return {"type": "refused", "code": error.code, "message": error.message, "ref": ref}
