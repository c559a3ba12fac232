"""A hint to the workers once the transaction is in. If it is lost, a sweep finds the rows."""

from __future__ import annotations

from uuid import UUID

from django.db import transaction
from kombu.exceptions import OperationalError as BrokerAway
from redis.exceptions import RedisError

from adiuva.celery import app
from adiuva.observability import log


def nudge(task: str, row_id: UUID) -> None:
    """Start a task that takes the id of a row."""

    def send() -> None:
        try:
            app.send_task(task, [str(row_id)])
        except (BrokerAway, RedisError) as error:
            log.warning("nudge.lost", task=task, error=type(error).__name__)

    transaction.on_commit(send)
