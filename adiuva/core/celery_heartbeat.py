"""How others know that workers and beat are alive: each says so in Redis, while it works.

One sorted set a role: node → when it was last heard, by Redis' own clock, so that no host's clock matters.
"""

from __future__ import annotations

import atexit
import os
import socket
from typing import Any, Literal, cast

import redis
import structlog
from celery import Celery, bootsteps, signals

from adiuva.core.redis import sync_redis

Role = Literal["worker", "beat"]

INTERVAL_S = 10.0
ALIVE_FOR_S = 30

log = structlog.get_logger("adiuva.core.celery_heartbeat")


def _redis() -> redis.Redis:
    return sync_redis("heartbeat")


def _key(role: Role) -> str:
    return f"adiuva:heartbeat:{role}"


def _node() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _now() -> int:
    seconds, _ = cast("tuple[int, int]", _redis().time())
    return seconds


def beat(role: Role) -> None:
    """Say that this process is alive. That Redis is away is for the health check to report."""
    try:
        now = _now()
        with _redis().pipeline() as pipe:
            pipe.zadd(_key(role), {_node(): now})
            pipe.zremrangebyscore(_key(role), 0, now - ALIVE_FOR_S)
            pipe.expire(_key(role), ALIVE_FOR_S * 2)
            pipe.execute()
    except redis.RedisError as error:
        log.warning("no heartbeat", role=role, error=type(error).__name__)


def sign_off(role: Role) -> None:
    """Say that this process ends."""
    try:
        _redis().zrem(_key(role), _node())
    except redis.RedisError as error:
        log.warning("no farewell", role=role, error=type(error).__name__)


def ping() -> None:
    """Raise redis.RedisError unless Redis answers."""
    _redis().ping()


def count_alive(role: Role) -> int:
    """How many nodes of the role were heard in the last HEARD_S seconds. Raises redis.RedisError."""
    return cast(int, _redis().zcount(_key(role), _now() - ALIVE_FOR_S, "+inf"))


class WorkerHeartbeat(bootsteps.StartStopStep):
    """In the worker's own loop, which is what must be alive.

    A step, because the consumer drops all timers when it connects anew, and starts its steps again.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        beat("worker")
        self._timer = consumer.timer.call_repeatedly(INTERVAL_S, beat, ("worker",))

    def stop(self, consumer: Any) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


def connect(app: Celery) -> None:
    """Make the workers and the beat of this application tell that they are alive."""
    app.steps["consumer"].add(WorkerHeartbeat)
    signals.worker_shutdown.connect(_worker_ends, weak=False)
    signals.beat_init.connect(_beat_begins, weak=False)


def _worker_ends(**_: Any) -> None:
    sign_off("worker")


def _beat_begins(**_: Any) -> None:
    beat("beat")
    # What the broker has accepted proves that the loop turns; the platform's own jobs come every few seconds.
    signals.after_task_publish.connect(_beat_published, weak=False)
    atexit.register(sign_off, "beat")


def _beat_published(**_: Any) -> None:
    beat("beat")
