"""The limit of concurrent requests to a mailbox, across processes and beyond the end of a sync."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis
from django.conf import settings
from redis.asyncio import Redis as AsyncRedis

from integrations.mail import mailbox_limiter
from integrations.mail.errors import ProviderThrottled
from integrations.mail.mailbox_limiter import MailboxLimiter, limiter_of
from tests.fakes.google import Google
from tests.fakes.mailboxes import Fail
from tests.integrations.sync_harness import Run, gmail, use


@pytest.fixture
def name() -> str:
    return f"{time.monotonic_ns()}@example.com"


async def test_limiters_of_several_processes_admit_four_requests_together(name: str) -> None:
    """The limiters share nothing but Redis, like those of several processes."""
    running = peak = done = 0

    async def request(limiter: MailboxLimiter) -> None:
        nonlocal running, peak, done
        async with limiter.permit():
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0.002)
            running -= 1
            done += 1

    several = [MailboxLimiter("Outlook", name) for _ in range(4)]
    await asyncio.gather(*(request(limiter) for limiter in several for _ in range(8)))
    assert (peak, done) == (4, 32)
    await given_back(several[0], 0)


async def test_a_retry_after_counts_in_every_process_and_for_later_syncs(name: str, settings: Any) -> None:
    one, other = MailboxLimiter("Gmail", name), MailboxLimiter("Gmail", name)
    until = time.monotonic() + 0.1
    await one.block(0.1)
    await one.block(0.01)  # the longer pause stays
    async with other.permit():
        assert time.monotonic() >= until
    await one.block(600)
    with pytest.raises(ProviderThrottled):
        async with other.permit():
            pass
    with Google() as google:
        use(settings, google=google)
        box = google.mailbox(name)
        box.fault("", Fail(429, "rateLimitExceeded", 600))
        for _ in range(2):
            with pytest.raises(ProviderThrottled):
                await Run().read(gmail(box))
    assert box.asked == []  # because another limiter was blocked


async def test_the_permit_of_a_cancelled_request_is_free_again(name: str) -> None:
    mine, theirs = MailboxLimiter("Gmail", name), MailboxLimiter("Gmail", name)
    async with AsyncExitStack() as held:
        for _ in range(4):
            await held.enter_async_context(mine.permit())
        waiting = asyncio.create_task(AsyncExitStack().enter_async_context(theirs.permit()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert theirs._free == 4
    async with theirs.permit():
        await given_back(mine, 1)


async def test_a_permit_that_comes_after_its_request_was_cancelled_is_given_back(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked, go_on = mailbox_limiter._run_script, asyncio.Event(), asyncio.Event()

    async def slow(script: str, *more: Any) -> Any:
        if script == mailbox_limiter._ACQUIRE:
            asked.set()
            await go_on.wait()
        return await run(script, *more)

    monkeypatch.setattr(mailbox_limiter, "_run_script", slow)
    limiter = MailboxLimiter("Gmail", name)
    waiting = asyncio.create_task(AsyncExitStack().enter_async_context(limiter.permit()))
    await asked.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert limiter._free == 4
    go_on.set()
    async with asyncio.timeout(60):
        while mailbox_limiter._background._tasks:
            await asyncio.sleep(0)
    await given_back(limiter, 0)


async def given_back(limiter: MailboxLimiter, left: int) -> None:
    """Wait until so many permits of the mailbox are held."""
    async with asyncio.timeout(60):
        while _redis().zcard(limiter._keys[0]) != left:
            await asyncio.sleep(0.005)


async def test_a_permit_is_renewed_while_it_is_used_and_free_soon_after_its_process_was_killed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox_limiter, "_PERMIT_TTL_S", 0.3)
    monkeypatch.setattr(mailbox_limiter, "_RENEW_S", 0.05)
    mine, theirs = MailboxLimiter("Gmail", name), MailboxLimiter("Gmail", name)
    async with AsyncExitStack() as held:
        for _ in range(4):
            await held.enter_async_context(mine.permit())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(AsyncExitStack().enter_async_context(theirs.permit()), 0.9)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # a killed process neither renews nor releases
        async with theirs.permit():
            pass


async def test_without_redis_each_process_applies_the_limit_by_itself(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = AsyncRedis.from_url("redis://127.0.0.1:1/0", socket_connect_timeout=1)
    monkeypatch.setattr(mailbox_limiter, "async_redis", lambda purpose: nowhere)
    monkeypatch.setattr(mailbox_limiter, "_redis_down_until", 0.0)
    alone = MailboxLimiter("Gmail", name)
    await alone.block(0.01)
    async with AsyncExitStack() as held:
        for _ in range(4):
            await held.enter_async_context(alone.permit())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(AsyncExitStack().enter_async_context(alone.permit()), 0.02)
    assert alone._free == 4


def test_a_mailbox_has_one_limiter_however_its_address_is_spelt(name: str) -> None:
    first = limiter_of("Gmail", name)
    assert limiter_of("Gmail", name.upper()) is first and limiter_of("Outlook", name) is not first


def _redis() -> redis.Redis:
    return redis.Redis.from_url(settings.REDIS_URL)
