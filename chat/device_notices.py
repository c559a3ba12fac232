"""Frames about the chat that devices get unasked: those of the user with the capability `followups`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable
from typing import Final

from channels.layers import get_channel_layer
from django.db import Error as DatabaseError
from redis.exceptions import RedisError

from adiuva.core import db
from adiuva.core.logging import log_failure
from adiuva.core.pipelined import Pipeline
from adiuva.devices import presence
from adiuva.devices.codec import dump
from adiuva.devices.protocol import ConversationChanged, RunEnded, TurnStarted
from chat.turn_bus import notice_message, turn_started_message

CAPABILITY: Final = "followups"

Notice = TurnStarted | RunEnded | ConversationChanged


def channels_of(user_id: uuid.UUID) -> frozenset[str]:
    """Return the channels of the user's connected devices that take such frames."""
    found = presence.channels_with(user_id=user_id, capability=CAPABILITY)
    return frozenset(channel for _, channel in found)


def add_channels(pipeline: Pipeline, user_id: uuid.UUID) -> Callable[[], frozenset[str]]:
    """Let a pipeline read what `channels_of` returns. The returned function returns it once all was sent."""
    found = pipeline.add(presence.CHANNELS_SQL, [user_id, CAPABILITY])
    return lambda: frozenset(channel for _, channel in found.fetchall())


async def send(user_id: uuid.UUID, frames: Iterable[Notice], channels: Collection[str] | None = None) -> None:
    """Send frames to the user's devices, or to certain channels. A client finds lost ones in the conversation."""
    try:
        if channels is None:
            channels = await db.run(channels_of, user_id)
        for channel in channels:
            for frame in frames:
                message = (
                    turn_started_message(dump(frame), frame.request_id)
                    if isinstance(frame, TurnStarted)
                    else notice_message(dump(frame))
                )
                await get_channel_layer().send(channel, message)
    except (OSError, RedisError, DatabaseError) as error:
        log_failure("followup.notice_failed", error, level="warning", user_id=str(user_id))
