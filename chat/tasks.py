"""Celery tasks of the chat."""

from __future__ import annotations

import datetime as dt

from celery import shared_task
from django.conf import settings

from chat import turn_rows

_DEADLINE_MARGIN_S = 60.0


@shared_task(name="chat.sweep")
def sweep() -> None:
    """End turns that run well past their deadline: a turn ends itself there, so they have lost their process."""
    turn_rows.end_lost_turns(
        older_than=dt.timedelta(seconds=settings.CHAT["turn_deadline_s"] + _DEADLINE_MARGIN_S)
    )
