"""Heartbeats of Celery's workers and beat in Redis, for the health check.

Redis has a sorted set for each role: node → time of its last heartbeat, by Redis' clock, so that no host's clock
matters. A worker has the role `worker`, and one more for each queue that it serves.
"""

from __future__ import annotations

import atexit
import os
import socket
import threading
from collections.abc import Mapping
from typing import Any, Final, Literal, cast

import redis
import structlog
from celery import Celery, bootsteps, signals

from adiuva.core.redis import sync_redis

Role = Literal["worker", "beat", "worker:runs", "worker:short"]
# The queues of settings.CELERY_TASK_QUEUES: each needs a worker.
LANES: Final[Mapping[str, Role]] = {"runs": "worker:runs", "short": "worker:short"}

INTERVAL_S = 10.0  # seconds between a worker's heartbeats
ALIVE_FOR_S = 30  # seconds after its last heartbeat, when a node counts as dead

log = structlog.get_logger(__name__)

_beat_thread = 0  # the id of the thread that runs this process's beat, if it has one


def _redis() -> redis.Redis:
    return sync_redis("heartbeat")


def _key(role: Role) -> str:
    return f"adiuva:heartbeat:{role}"


def _node() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _now() -> int:
    seconds, _ = cast("tuple[int, int]", _redis().time())
    return seconds


def beat(*roles: Role) -> None:
    """Record that this process is alive. Redis errors are only logged, since the health check reports them."""
    try:
        now = _now()
        with _redis().pipeline() as pipe:
            for role in roles:
                pipe.zadd(_key(role), {_node(): now})
                pipe.zremrangebyscore(_key(role), 0, now - ALIVE_FOR_S)
                pipe.expire(_key(role), ALIVE_FOR_S * 2)
            pipe.execute()
    except redis.RedisError as error:
        log.warning("heartbeat.not_sent", role=roles[0], error=type(error).__name__)


def sign_off(*roles: Role) -> None:
    """Record that this process ends, so that it does not count as alive until its heartbeat expires."""
    try:
        for role in roles:
            _redis().zrem(_key(role), _node())
    except redis.RedisError as error:
        log.warning("heartbeat.sign_off_failed", role=roles[0], error=type(error).__name__)


def write_something() -> None:
    """Raise redis.RedisError unless Redis answers and takes writes."""
    _redis().set("adiuva:readiness", 1, ex=ALIVE_FOR_S)


def count_alive(role: Role) -> int:
    """Return how many nodes of the role sent a heartbeat in the last ALIVE_FOR_S seconds. Raises redis.RedisError."""
    return cast(int, _redis().zcount(_key(role), _now() - ALIVE_FOR_S, "+inf"))


class WorkerHeartbeat(bootsteps.StartStopStep):
    """Bootstep that sends heartbeats from the worker's own event loop, since it is that loop that must be alive.

    It is a bootstep because the consumer drops all timers when it reconnects, and then starts its steps again.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        served = consumer.app.amqp.queues.consume_from
        roles: list[Role] = ["worker", *(role for queue, role in LANES.items() if queue in served)]
        beat(*roles)
        self._timer = consumer.timer.call_repeatedly(INTERVAL_S, beat, roles)

    def stop(self, consumer: Any) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


def connect(app: Celery) -> None:
    """Make the workers and the beat of this application send heartbeats."""
    app.steps["consumer"].add(WorkerHeartbeat)
    signals.worker_shutdown.connect(_worker_stopped, weak=False)
    signals.beat_init.connect(_beat_started, weak=False)


def _worker_stopped(**_: Any) -> None:
    sign_off("worker", *LANES.values())


def _beat_started(**_: Any) -> None:
    global _beat_thread
    _beat_thread = threading.get_ident()
    beat("beat")
    # A task that the broker has accepted proves that beat's loop runs; beat sends some job every few seconds.
    signals.after_task_publish.connect(_published, weak=False)
    atexit.register(sign_off, "beat")


def _published(**_: Any) -> None:
    if threading.get_ident() == _beat_thread:  # a worker that runs beat in a thread publishes, too
        beat("beat")
