"""Turns whose process is gone: they are ended as lost, so that nobody waits for them.

A process renews the leases of its turns (chat.turn_registry). A turn is lost when its lease ran out, or as soon as
somebody finds that nobody listens on its process's channel. Both end its lease, so a process that was thought dead
cannot end the turn a second time (chat.turn_ends.finish_turn says what becomes of its answer).
"""

from __future__ import annotations

import datetime as dt
from typing import Final

import structlog
from django.db.models import Q
from django.db.models.functions import Now

from adiuva.core import leases
from adiuva.core.pruning import delete_in_batches
from chat.models import Turn
from chat.turn_ends import lose_turn
from chat.turn_queue import GIVE_UP, Ended

# The most turns that one sweep ends, each in a transaction of its own.
_MOST: Final = 500

TURN_RETENTION = dt.timedelta(days=30)

log = structlog.get_logger(__name__)


def mark_lost(*, turn: Turn, code: str) -> Ended:
    """End a turn whose process is gone, unless it has ended meanwhile."""
    return lose_turn(turn=turn, code=code)


def end_lost_turns() -> int:
    """End turns whose lease ran out. Returns how many.

    The process of the next turn in their conversations begins that turn, as it looks for turns whose time has come
    (chat.queued_turns).
    """
    given_up = Q(lease_until__lt=Now() - GIVE_UP)
    over = Turn.objects.running().filter(leases.is_over()).filter(Q(waiting_request=None) | given_up)
    ended = 0
    for turn in over.only("user_id", "conversation_id", "owner", "fence")[:_MOST]:
        if lose_turn(turn=turn, code="turn_lost", only_over=True).ended:
            ended += 1
            log.warning("turn.lost", turn=str(turn.pk), user_id=str(turn.user_id))
    return ended


def delete_old_turns() -> None:
    """Delete ended turns that were started before the retention period."""
    old = Turn.objects.filter(started_at__lt=Now() - TURN_RETENTION).exclude(ended_at=None)
    delete_in_batches(old.order_by("started_at"))
