"""A whole turn without a socket, for a caller that waits for its end."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, replace

from adiuva.core import db
from adiuva.devices import presence
from adiuva.devices.protocol import Mutation, Notice, Usage
from chat.request import ChatRequest
from chat.turn_registry import registry


@dataclass(frozen=True)
class TurnResult:
    """A whole turn, for a caller that did not listen to it."""

    text: str
    mutations: list[Mutation]
    finish: str
    code: str
    usage: Usage
    conversation_id: uuid.UUID | None
    device_id: str | None
    notices: list[Notice]
    retry_at: dt.datetime | None = None


async def run_to_end(request: ChatRequest) -> TurnResult:
    """Run a whole turn without a socket, on the device that it names, or the user's that was seen last.

    Without a device it answers from the request's context, and tools say that the device is offline. Raises
    AlreadyClaimed, and what `TurnRegistry.find_or_start` does.
    """
    if await db.run(presence.find, user_id=request.user_id, pk=request.device_id) is None:
        request = replace(request, expects_device=False)
    turn = await registry().find_or_start(request)
    await turn.ended.wait()
    return TurnResult(
        turn.output.text,
        turn.mutations,
        turn.finish,
        turn.code,
        turn.usage,
        turn.claimed.conversation_id,
        turn.device_id,
        turn.notices,
        turn.retry_at,
    )
