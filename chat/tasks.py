"""Celery tasks of the chat."""

from __future__ import annotations

import datetime as dt

from celery import shared_task
from django.conf import settings

from chat import turn_rows

_AFTER_DEADLINE_S = 60.0


@shared_task(name="chat.sweep")
def sweep() -> None:
    """A turn ends itself at its deadline: whatever still runs well after it has lost its process."""
    turn_rows.end_lost_turns(
        older_than=dt.timedelta(seconds=settings.CHAT["turn_deadline_s"] + _AFTER_DEADLINE_S)
    )
