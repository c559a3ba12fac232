"""Delete expired rows: entries that were not used, history, receipts. settings.MEMORY holds their lifetimes in days."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Final

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.expressions import Combinable
from django.db.models.functions import Now

from adiuva.core.pruning import delete_in_batches
from memory.entries import lock_memory
from memory.models import Entry, EntrySource, Receipt, SourceKind, Tier

# Rows deleted in one transaction.
_BATCH: Final = 500


def delete_expired_entries(user_id: uuid.UUID) -> int:
    """Delete a user's expired entries. Returns how many. Raises NoSuchUser."""
    deleted = 0
    while count := _delete_batch(user_id):
        deleted += count
    return deleted


@transaction.atomic
def _delete_batch(user_id: uuid.UUID) -> int:
    if not lock_memory(user_id).enabled:
        return 0
    ids = list(
        Entry.objects.of(user_id)
        .filter(_unused() | _expired_history() | Q(proposed=True, created_at__lt=_ago("keep_history_days")))
        .order_by()
        .values_list("pk", flat=True)[:_BATCH]
    )
    Entry.objects.filter(pk__in=ids).delete()
    return len(ids)


def _unused() -> Q:
    """Return a condition on old associative entries that were not recalled for long and that the user did not write."""
    recent = EntrySource.objects.filter(
        Q(kind=SourceKind.USER) | Q(at__gte=_ago("forget_unused_after_days")), entry=OuterRef("pk")
    )
    return Q(
        Q(used_at=None) | Q(used_at__lt=_ago("forget_after_last_use_days")),
        ~Exists(recent),
        tier=Tier.ASSOCIATIVE,
        valid_to=None,
        proposed=False,
        created_at__lt=_ago("forget_unused_after_days"),
    )


def _expired_history() -> Q:
    """Return a condition on expired history; the parts of condensed episodes expire sooner."""
    return Q(valid_to__lt=_ago("keep_history_days")) | Q(
        tier=Tier.EPISODIC, successor__derived=True, valid_to__lt=_ago("keep_condensed_parts_days")
    )


def delete_expired_receipts() -> int:
    """Delete expired receipts of all users. Returns how many; the next call goes on."""
    return delete_in_batches(Receipt.objects.filter(at__lt=_ago("keep_receipts_days")).order_by("at"))


def _ago(name: str) -> Combinable:
    return Now() - dt.timedelta(days=settings.MEMORY[name])
