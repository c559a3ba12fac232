"""Approvals between processes: Redis maps each approval_request to the process that waits for its answer."""

from __future__ import annotations

import uuid

import structlog
from channels.layers import get_channel_layer
from django.conf import settings
from django.db import Error as DatabaseError
from redis.exceptions import RedisError

from adiuva.core import db
from adiuva.core.logging import log_failure
from adiuva.core.redis import async_redis
from adiuva.devices import presence
from adiuva.devices.codec import dump
from adiuva.devices.protocol import ApprovalRequest
from chat.request import ChatRequest
from chat.turn_bus import notice_message

log = structlog.get_logger(__name__)


async def remember_owner(user_id: uuid.UUID, approval: str, channel: str) -> bool:
    """Store the channel of the process that waits for an approval. Returns False if Redis is away."""
    expires_s = max(1, int(settings.CHAT["turn_deadline_s"]))
    try:
        await async_redis("chat").set(_key(user_id, approval), channel, ex=expires_s)
    except (RedisError, OSError) as error:
        log_failure("approval.owner_not_kept", error, level="warning", approval=approval)
        return False
    return True


async def find_owner(user_id: uuid.UUID, approval: str) -> str:
    """Return the channel of the process that waits for an approval; "" if there is none or Redis is away."""
    # The key stays until it expires: the turn counts one answer, and this one may not reach it.
    try:
        owner: bytes | None = await async_redis("chat").get(_key(user_id, approval))
    except (RedisError, OSError):
        return ""
    return owner.decode() if owner else ""


async def ask_other_devices(request: ChatRequest, question: ApprovalRequest) -> None:
    """Send an approval_request to the user's devices other than the one that the request came from."""
    try:
        found = await db.run(presence.channels_with, user_id=request.user_id, capability="approval")
        for device, channel in found:
            if device != request.device_id:
                await get_channel_layer().send(channel, notice_message(dump(question)))
    except (OSError, DatabaseError) as error:
        log_failure("approval.notice_failed", error, level="warning", approval=question.id)


def _key(user_id: uuid.UUID, approval: str) -> str:
    return f"adiuva:approval:{user_id}:{approval}"
