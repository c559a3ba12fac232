"""Deletion of objects that nothing refers to, and comparison of the store with the rows that refer to it, in both
directions.

An app that refers to objects says which (`refers_with`). Triggers of its tables (`triggers.py`) queue the objects that
they stop referring to, so that no way of deleting a row can forget one.
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
    """References of an app's rows to objects."""

    def referred(self, names: Collection[str], /) -> set[str]:
        """Return those of these objects that a row refers to."""

    def expected(self, shard: str, /) -> set[str]:
        """Return the objects of a shard that must be there: those that are whole, and not known to be missing."""

    def lost(self, name: str, /) -> None:
        """Note that an expected object is not there."""


_referrers: list[Referrer] = []


def refers_with(app: Referrer) -> None:
    """Register an app's references when it is ready."""
    _referrers.append(app)


def _referred(names: Collection[str]) -> set[str]:
    return set().union(*(app.referred(names) for app in _referrers))


def keep_for() -> dt.timedelta:
    """Return how long objects wait that a restored database could still refer to."""
    return dt.timedelta(days=settings.STORE["keep_days"])


def collect(most: int = _AT_ONCE) -> int:
    """Delete due objects. Returns how many. Two workers at once do no harm, because an object can be deleted twice."""
    due = list(Garbage.objects.due(keep_for()).values_list("name", flat=True)[:most])
    referred = _referred(due) if due else set()
    deleted: list[str] = []
    for name in due:
        if name in referred:  # a restored database brings back the queue of its time
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
    """Result of a comparison: objects without a row, and rows without their object."""

    orphans: int = 0
    lost: int = 0


def compare(shards: Sequence[str] = SHARDS, *, older_than: dt.timedelta | None = None) -> Compared:
    """Compare these shards of the store with the references of rows. Raises StorageAway.

    Objects that no row refers to are queued if they are older than `older_than`. Rows are written before bytes, so
    there are none unless the database is older than the store. It tells apps of their missing objects.
    """
    before = timezone.now() - (keep_for() if older_than is None else older_than)
    found = Compared()
    for shard in shards:
        # In this order, because an object that rows refer to before and after the listing was referred to all the
        # while.
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
    """Return the shards that are compared in this hour: in a day all of them."""
    return SHARDS[hour % 24 :: 24]
