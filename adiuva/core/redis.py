"""Redis clients: one for each purpose, with the timeout that the purpose can afford.

The channel layer has a connection of its own (channel_layer.py); Celery and Django's cache open theirs.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any, Final, Literal

import redis
from django.conf import settings
from redis.asyncio import Redis as AsyncRedis

from adiuva.core.per_loop import PerLoop

Purpose = Literal["chat", "heartbeat", "mailbox_limiter", "model_limits", "rate_limits", "request_limits"]

TIMEOUTS_S: Final[dict[Purpose, float]] = {
    # For stream log, approvals, summaries: a turn waits for an answer, and can do without one.
    "chat": 3.0,
    # For a health check, which has to answer before its load balancer gives up.
    "heartbeat": 2.0,
    # For each request to a mailbox, before and after it. The request takes longer; without an answer each process goes
    # on alone.
    "mailbox_limiter": 1.0,
    # For use beside calls of models, which take seconds.
    "model_limits": 1.0,
    # For each attempt to sign in, which is refused without an answer.
    "rate_limits": 3.0,
    # For each request of a user; without an answer each process counts alone.
    "request_limits": 0.5,
}


def sync_redis(purpose: Purpose) -> redis.Redis:
    """Return the process's blocking client, which several threads may use. Commands raise redis.RedisError."""
    return _sync_client(settings.REDIS_URL, TIMEOUTS_S[purpose])


def async_redis(purpose: Purpose) -> AsyncRedis:
    """Return the running event loop's client. Commands raise redis.RedisError or OSError."""
    clients, key = _async_clients.get(), (settings.REDIS_URL, TIMEOUTS_S[purpose])
    if key not in clients:
        url, timeout_s = key
        clients[key] = _CancellableRedis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s
        )
    return clients[key]


@cache
def _sync_client(url: str, timeout_s: float) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)


class _CancellableRedis(AsyncRedis):
    """Client whose caller can be cancelled while it waits for an answer.

    redis-py 7.4 swallows a cancellation that arrives during the wait, so a cancelled turn would continue. This client
    cancels the wait instead; the command itself runs to its end.
    """

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return await asyncio.shield(super().execute_command(*args, **options))  # type: ignore[no-untyped-call]


_async_clients: PerLoop[dict[tuple[str, float], AsyncRedis]] = PerLoop(dict)
