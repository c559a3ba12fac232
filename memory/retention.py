"""What time takes away: what was never used, history, receipts. The days are settings.MEMORY's."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Final

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.expressions import Combinable
from django.db.models.functions import Now

from memory import entries
from memory.models import Entry, EntrySource, Receipt, SourceKind, Tier

_BATCH: Final = 500  # rows a transaction
_MOST_BATCHES: Final = 20


def delete_expired_entries(user_id: uuid.UUID) -> int:
    """Delete what of a user's memory has had its time. Returns how many entries. Raise NoSuchUser."""
    gone = 0
    while count := _fade(user_id):
        gone += count
    return gone


@transaction.atomic
def _fade(user_id: uuid.UUID) -> int:
    if not entries.lock_memory(user_id).enabled:
        return 0
    ids = list(
        Entry.objects.of(user_id).filter(_unused() | _past()).order_by().values_list("pk", flat=True)[:_BATCH]
    )
    Entry.objects.filter(pk__in=ids).delete()
    return len(ids)


def _unused() -> Q:
    """What was said and seen once, long ago, and never needed, or not for long. Never what the user wrote."""
    stays = EntrySource.objects.filter(
        Q(kind=SourceKind.USER) | Q(at__gte=_ago("forget_unused_after_days")), entry=OuterRef("pk")
    )
    return Q(
        Q(used_at=None) | Q(used_at__lt=_ago("forget_after_last_use_days")),
        ~Exists(stays),
        tier=Tier.ASSOCIATIVE,
        valid_to=None,
        created_at__lt=_ago("forget_unused_after_days"),
    )


def _past() -> Q:
    """History, and sooner the parts of condensed episodes."""
    return Q(valid_to__lt=_ago("keep_history_days")) | Q(
        tier=Tier.EPISODIC, successor__derived=True, valid_to__lt=_ago("keep_condensed_parts_days")
    )


def delete_expired_receipts() -> int:
    """Delete old receipts of all users, some of them if they are many. Returns how many."""
    gone = 0
    for _ in range(_MOST_BATCHES):
        old = Receipt.objects.filter(at__lt=_ago("keep_receipts_days")).order_by("at").values("pk")[:_BATCH]
        count = Receipt.objects.filter(pk__in=old).delete()[0]
        gone += count
        if count < _BATCH:
            break
    return gone


def _ago(name: str) -> Combinable:
    return Now() - dt.timedelta(days=settings.MEMORY[name])
