"""Streams that a client lost and resumes: how tests bring them about, and what they look up."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from redis.asyncio import Redis

from adiuva.core import db
from chat.models import Turn
from tests.chat.chat_client import ChatClient, ClientStream, Frame, FrameTap, wait_for
from tests.factories import Person


async def resume(client: ChatClient, key: str, after: int) -> None:
    client.streams[key] = ClientStream()
    await client.socket.send({"type": "stream_resume", "request_id": key, "after": after})


async def heard_to(client: ChatClient, key: str, seq: int) -> list[Frame]:
    """All frames of a request, up to this one."""
    await client.until(lambda: key in client.streams and client.streams[key].seq >= seq)
    return client.streams[key].frames


async def row_of(person: Person, key: str) -> Turn:
    return await db.run(Turn.objects.get, user_id=person.id, request_id=key)


async def flowing(client: ChatClient, tap: FrameTap, pieces: int = 20) -> str:
    """A turn that has said something and waits for its model to go on."""
    key = await client.ask("tell me a lot")
    await wait_for(tap.reached)
    for _ in range(pieces):
        seq = client.streams[key].seq if key in client.streams else -1
        tap.open(1)
        await heard_to(client, key, seq + 1)
    return key


async def logged(redis: Redis, person: Person) -> None:
    """Until the log has the end of the user's streams, as their processes have let them go."""
    async with asyncio.timeout(60):
        while not await keys(redis, person):
            await asyncio.sleep(0.02)


async def keys(redis: Redis, person: Person) -> list[bytes]:
    return [key async for key in redis.scan_iter(f"adiuva:stream:{person.id}:*")]


async def forget(redis: Redis, person: Person) -> None:
    for key in await keys(redis, person):
        await redis.delete(key)


async def age(person: Person, key: str) -> None:
    """Let a turn have ended a while ago."""
    row = await row_of(person, key)
    assert row.ended_at is not None
    await db.run(Turn.objects.filter(pk=row.pk).update, ended_at=row.ended_at - timedelta(minutes=11))
