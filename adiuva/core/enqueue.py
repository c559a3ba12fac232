"""Start of Celery tasks once the current transaction has committed.

A task that is lost (Redis is away, the process dies) costs only time: a periodic sweep finds the rows. A separate
thread sends tasks in order, so that a Redis that hangs cannot delay the end of a turn or a request.
"""

from __future__ import annotations

import queue
import threading
from functools import cache
from typing import Final, NoReturn
from uuid import UUID

import structlog
from celery import current_app
from django.db import transaction
from kombu import Producer
from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import RedisError

from adiuva.core.logging import log_failure

# At most this many tasks wait to be sent. While Redis is away, more are dropped and left to the sweeps.
_MAX_QUEUED: Final = 10_000

_queue: queue.Queue[tuple[str, list[str], float]] = queue.Queue(_MAX_QUEUED)

log = structlog.get_logger(__name__)


def enqueue_on_commit(task: str, *ids: UUID, after_s: float = 0.0) -> None:
    """Start the task of this name with the ids of rows, `after_s` seconds after the commit.

    It never raises: a task that cannot be sent is logged, and its rows are left to the sweep.
    """
    transaction.on_commit(lambda: _put(task, [str(row_id) for row_id in ids], after_s))


def _put(task: str, ids: list[str], after_s: float) -> None:
    _sender()
    try:
        _queue.put_nowait((task, ids, after_s))
    except queue.Full:
        log.warning("task.not_enqueued", task=task, error="Full")


@cache
def _sender() -> threading.Thread:
    thread = threading.Thread(target=_send, name="enqueue", daemon=True)
    thread.start()
    return thread


def _send() -> None:
    while True:
        try:
            with current_app.connection_for_write() as connection:
                _send_over(current_app.amqp.Producer(connection, auto_declare=False))
        except (BrokerError, RedisError, OSError) as error:
            log.warning("task.not_enqueued", error=type(error).__name__)
        except Exception as error:
            # An answer such as MISCONF may leave kombu's channel closed, which shows as an AttributeError.
            log_failure("task.not_enqueued", error)


def _send_over(producer: Producer) -> NoReturn:
    """Send tasks until one fails, which is left to the sweep. The next task gets a new connection."""
    while True:
        task, ids, after_s = _queue.get()
        current_app.send_task(task, ids, countdown=after_s, producer=producer)
