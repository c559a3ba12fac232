"""Frames about the chat to devices that have not asked for them: those of the user with the capability `followups`."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from typing import Final

from channels.layers import get_channel_layer
from django.db import Error as DatabaseError
from redis.exceptions import RedisError

from adiuva.core import db
from adiuva.core.logging import log_failure
from adiuva.devices import presence
from adiuva.devices.codec import dump
from adiuva.devices.protocol import ConversationChanged, RunEnded, TurnStarted
from chat.turn_bus import notice_message, turn_started_message

CAPABILITY: Final = "followups"

Notice = TurnStarted | RunEnded | ConversationChanged


async def send(user_id: uuid.UUID, frames: Iterable[Notice], *, but: Collection[str] = ()) -> None:
    """Send frames to the user's devices but those with certain channels. What is lost on the way, a client finds in the
    conversation."""
    try:
        found = await db.run(presence.channels_with, user_id=user_id, capability=CAPABILITY)
        for channel in {channel for _, channel in found}.difference(but):
            for frame in frames:
                message = (
                    turn_started_message(dump(frame), frame.request_id)
                    if isinstance(frame, TurnStarted)
                    else notice_message(dump(frame))
                )
                await get_channel_layer().send(channel, message)
    except (OSError, RedisError, DatabaseError) as error:
        log_failure("followup.notice_failed", error, level="warning", user_id=str(user_id))
