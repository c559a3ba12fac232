"""Delete runs that ended long ago, with their journals and the rest of their records (settings.RUNS["keep_days"]).

A record that still stands in a document outlives its run, because a later reading of the document may change it or take
it back; agents/found_records.py deletes it with the document.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.db.models.expressions import Combinable
from django.db.models.functions import Now

from adiuva.core import leases
from adiuva.core.pruning import BATCH, delete_in_batches
from adiuva.devices.models import OutboxRecord
from agents.models import FoundRecord, Run, RunEvent

# The number of runs deleted together, and of such groups in one call.
_RUNS: Final = 100
_MOST_GROUPS: Final = 100
# Held while their rows are deleted, so that nobody undoes them meanwhile.
_LEASE: Final = dt.timedelta(minutes=10)

_TAKEN_BACK: Final = (OutboxRecord.State.UNDONE, OutboxRecord.State.WITHDRAWN)


def delete_expired() -> int:
    """Delete expired runs, in short transactions. Returns how many. With 0 days none expires."""
    days = settings.RUNS["keep_days"]
    if not days:
        return 0
    before = Now() - dt.timedelta(days=days)
    deleted = 0
    for _ in range(_MOST_GROUPS):
        runs = leases.claim(_expired(before), _LEASE, most=_RUNS)
        if not runs:
            break
        _delete_runs([run.pk for run in runs])
        deleted += len(runs)
    taken_back = OutboxRecord.objects.filter(state__in=_TAKEN_BACK, settled_at__lt=before).order_by(
        "settled_at"
    )
    for _ in range(_MOST_GROUPS):
        if not (records := list(taken_back.values_list("pk", flat=True)[:BATCH])):
            break
        _delete_records(records)
    return deleted


def _expired(before: Combinable) -> QuerySet[Run]:
    """Return expired runs, oldest first. Records that still wait for delivery, and untold ends, keep their run."""
    waiting = OutboxRecord.objects.waiting().filter(source_run=OuterRef("pk"))
    ended = Run.objects.filter(~Exists(waiting), created_at__lt=before, undelivered=False)
    ended = ended.exclude(state__in=Run.LIVE).exclude(announcement=Run.Announcement.DUE)
    return ended.order_by("created_at")


def _delete_runs(ids: Collection[UUID]) -> None:
    delete_in_batches(RunEvent.objects.filter(run__in=ids).order_by(), most=None)
    found = FoundRecord.objects.filter(pk=OuterRef("pk"))
    delete_in_batches(OutboxRecord.objects.filter(~Exists(found), source_run__in=ids).order_by(), most=None)
    Run.objects.filter(pk__in=ids).delete()


@transaction.atomic
def _delete_records(ids: Collection[UUID]) -> None:
    FoundRecord.objects.filter(pk__in=ids).delete()
    OutboxRecord.objects.filter(pk__in=ids).delete()
