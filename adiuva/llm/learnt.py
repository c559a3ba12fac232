"""Facts learnt about a model at an endpoint, each with a name, shared by all processes through Redis.

Facts that nobody changes any more are forgotten after a day, and when `manage.py check_models` asks the model: servers
are upgraded, and models replaced behind their names. While Redis is away each process goes on with what it knows.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Mapping
from typing import Final, cast

import structlog
from redis.exceptions import RedisError

from adiuva.core.logging import log_failure
from adiuva.core.redis import async_redis

_KEPT_S: Final = 24 * 3600
_READ_AGAIN_AFTER_S: Final = 60.0

log = structlog.get_logger(__name__)


class LearntFacts:
    """Facts about one model at one endpoint, as far as this process has read or noted them."""

    def __init__(self, endpoint: str, model: str) -> None:
        self.endpoint, self.model = endpoint, model
        self._key = redis_key(endpoint, model)
        self._facts: dict[str, str] = {}
        self._named: dict[str, frozenset[str]] = {}  # by value, computed once until facts change
        self._read_at = 0.0

    def get(self, name: str) -> str:
        return self._facts.get(name, "")

    def named(self, value: str) -> frozenset[str]:
        """Return the names of the facts that have this value."""
        if (names := self._named.get(value)) is None:
            names = frozenset(name for name, known in self._facts.items() if known == value)
            self._named[value] = names
        return names

    def _know(self, facts: Mapping[str, str]) -> None:
        self._facts = dict(facts)
        self._named.clear()

    async def read(self) -> None:
        """Read once a minute what other processes have learnt."""
        if time.monotonic() < self._read_at:
            return
        self._read_at = time.monotonic() + _READ_AGAIN_AFTER_S
        try:
            found = await cast(
                "Awaitable[dict[bytes, bytes]]", async_redis("model_limits").hgetall(self._key)
            )
        except (RedisError, OSError) as error:
            _note_redis(error)
            return
        _note_redis(None)
        self._know({name.decode(): value.decode() for name, value in found.items()})

    async def note(self, facts: Mapping[str, str]) -> None:
        """Keep facts beside those of other names."""
        changed = {name: value for name, value in facts.items() if self._facts.get(name) != value}
        if not changed:
            return
        self._know(self._facts | changed)
        try:
            async with async_redis("model_limits").pipeline(transaction=False) as pipeline:
                pipeline.hset(self._key, mapping=changed)
                pipeline.expire(self._key, _KEPT_S)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            _note_redis(error)

    async def forget(self) -> None:
        """Forget all facts; other processes do so when they read again."""
        self._know({})
        try:
            await async_redis("model_limits").delete(self._key)
        except (RedisError, OSError) as error:
            _note_redis(error)


def redis_key(endpoint: str, model: str) -> str:
    return f"adiuva:model_learnt:{hashlib.sha256(f'{endpoint} {model}'.encode()).hexdigest()[:32]}"


_facts: dict[tuple[str, str], LearntFacts] = {}
_is_redis_away = False


def learnt_facts(endpoint: str, model: str) -> LearntFacts:
    """Return what this process knows of a model at an endpoint: one object for all callers."""
    return _facts.setdefault((endpoint, model), LearntFacts(endpoint, model))


def forget() -> None:
    """Forget what this process knows, for tests."""
    for facts in _facts.values():
        facts._know({})
        facts._read_at = 0.0


def _note_redis(error: Exception | None) -> None:
    """Log once that Redis is away, until it is back."""
    global _is_redis_away
    if error is not None and not _is_redis_away:
        log_failure("model.learnt_not_shared", error, logger=log, level="warning")
    _is_redis_away = error is not None
