"""Redis clients."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from adiuva.core.redis import async_redis, sync_redis


def test_a_purpose_has_one_blocking_client_with_its_timeout() -> None:
    client = sync_redis("heartbeat")
    assert client.ping() and client is sync_redis("heartbeat") and client is not sync_redis("chat")
    assert client.get_connection_kwargs()["socket_timeout"] == 2.0


def test_each_loop_has_a_client_of_its_own() -> None:
    async def client() -> object:
        assert await async_redis("chat").ping() and async_redis("chat") is async_redis("chat")
        return async_redis("chat")

    assert asyncio.run(client()) is not asyncio.run(client())


async def test_waiting_for_an_answer_can_be_cancelled() -> None:
    waiting = asyncio.create_task(async_redis("chat").blpop(["adiuva:test:nothing"], timeout=1))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with contextlib.suppress(Exception):
        await async_redis("chat").aclose()
