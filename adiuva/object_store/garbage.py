"""Deleting objects that nothing refers to; comparing the store with the rows that refer to it, in both directions.

An app that refers to objects says which (`refers_with`). Its tables queue what they stop referring to by a trigger
(`triggers.py`), so that no way of deleting a row can forget it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from django.conf import settings
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.core.logging import log_failure
from adiuva.object_store.models import Garbage, queue
from adiuva.object_store.store import SHARDS, ObjectMissing, StorageAway, StorageFull, store

log = structlog.get_logger(__name__)

_AT_ONCE: Final = 200
_BATCH: Final = 500
_LONGEST_PAUSE: Final = dt.timedelta(hours=6)


class Referrer(Protocol):
    """An app's account of the objects that its rows refer to."""

    def referred(self, names: Collection[str], /) -> set[str]:
        """Those of these objects that a row refers to."""

    def expected(self, shard: str, /) -> set[str]:
        """The objects of a shard that must be there: those that are whole, and not known to be missing."""

    def lost(self, name: str, /) -> None:
        """An expected object is not there."""


_referrers: list[Referrer] = []


def refers_with(app: Referrer) -> None:
    """An app says so when it is ready."""
    _referrers.append(app)


def _referred(names: Collection[str]) -> set[str]:
    return set().union(*(app.referred(names) for app in _referrers))


def keep_for() -> dt.timedelta:
    """Return how long objects wait that a restored database could still refer to."""
    return dt.timedelta(days=settings.STORE["keep_days"])


def collect(most: int = _AT_ONCE) -> int:
    """Delete what is due. Returns how many objects. Two workers at once do no harm: deleting twice is deleting."""
    due = list(Garbage.objects.due(keep_for()).values_list("name", flat=True)[:most])
    referred = _referred(due) if due else set()
    deleted: list[str] = []
    for name in due:
        if name in referred:  # a database was restored, and the queue of its time with it
            Garbage.objects.filter(name=name).delete()
            log.warning("object.kept", name=name)
            continue
        try:
            store().delete(name)
        except (StorageAway, StorageFull, ObjectMissing) as error:
            log_failure("object.not_deleted", error, level="warning")
            _put_off(name)
            continue
        deleted.append(name)
    Garbage.objects.filter(name__in=deleted).delete()
    return len(deleted)


def _put_off(name: str) -> None:
    tries = Garbage.objects.filter(name=name).values_list("tries", flat=True).first() or 0
    pause = min(_LONGEST_PAUSE, dt.timedelta(minutes=2 ** min(tries, 9)))
    Garbage.objects.filter(name=name).update(tries=F("tries") + 1, not_before=Now() + pause)


@dataclass
class Compared:
    """Objects without a row, and rows without their object."""

    orphans: int = 0
    lost: int = 0


def compare(shards: Sequence[str] = SHARDS, *, older_than: dt.timedelta | None = None) -> Compared:
    """Compare these shards of the store with what rows refer to. Raises StorageAway.

    Objects that no row refers to are queued if they are older than `older_than`: rows are written before bytes, so
    there are none unless the database is older than the store. Of objects that are not there, their apps are told.
    """
    before = timezone.now() - (keep_for() if older_than is None else older_than)
    found = Compared()
    for shard in shards:
        # In this order: what a row refers to before and after the listing was there all the while.
        expected = [(app, app.expected(shard)) for app in _referrers]
        listed = list(store().list(shard))
        there = {each.name for each in listed}
        for app, names in expected:
            for name in app.referred(names - there):
                log.error("object.lost", name=name)
                app.lost(name)
                found.lost += 1
        found.orphans += _queue_orphans(sorted({each.name for each in listed if each.modified < before}))
    if found.orphans:
        log.warning("object.orphans_found", count=found.orphans)
    return found


def _queue_orphans(names: Sequence[str]) -> int:
    found = 0
    for begin in range(0, len(names), _BATCH):
        batch = names[begin : begin + _BATCH]
        queued = set(Garbage.objects.filter(name__in=batch).values_list("name", flat=True))
        orphans = set(batch) - queued - _referred(batch)
        queue(orphans)
        found += len(orphans)
    return found


def shards_of_hour(hour: int) -> tuple[str, ...]:
    """The part of the store that is looked through in this hour: in a day all of it."""
    return SHARDS[hour % 24 :: 24]
