"""A hint to the workers once the transaction is in. If it is lost, a sweep finds the rows.

Nobody waits for it, or a Redis that hangs would hold up the end of a turn: a thread of its own sends them, in order.
"""

from __future__ import annotations

import queue
import threading
from functools import cache
from typing import Final
from uuid import UUID

from celery import current_app
from django.db import transaction
from kombu.exceptions import OperationalError as BrokerAway
from redis.exceptions import RedisError

from adiuva.core.logging import log

_MOST: Final = 10_000  # that wait to be sent; while Redis is away the rest is left to the sweep

_waiting: queue.Queue[tuple[str, list[str], float]] = queue.Queue(_MOST)


def enqueue_on_commit(task: str, *ids: UUID, after_s: float = 0.0) -> None:
    """Start a task that takes the ids of rows."""
    transaction.on_commit(lambda: _put(task, [str(row_id) for row_id in ids], after_s))


def _put(task: str, ids: list[str], after_s: float) -> None:
    _sender()
    try:
        _waiting.put_nowait((task, ids, after_s))
    except queue.Full:
        log.warning("nudge.lost", task=task, error="Full")


@cache
def _sender() -> threading.Thread:
    thread = threading.Thread(target=_send, name="nudges", daemon=True)
    thread.start()
    return thread


def _send() -> None:
    while True:
        task, ids, after_s = _waiting.get()
        try:
            current_app.send_task(task, ids, countdown=after_s)
        except (BrokerAway, RedisError, OSError) as error:
            log.warning("nudge.lost", task=task, error=type(error).__name__)
