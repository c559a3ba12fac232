"""Maintenance of data keys: rotation of the ring, the move to the keys' own database, and repair between the two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Count, QuerySet
from django.utils import timezone

from adiuva.accounts.key_store import (
    copy_of,
    has_own_database,
    is_same_key,
    keys_in_use,
    separate_keys,
    unwrap,
)
from adiuva.accounts.models import SeparateKey, User, UserKey
from adiuva.core import crypto

log = structlog.get_logger(__name__)

# A deletion of an account that has not ended after this time was interrupted.
_DELETION_TIMEOUT = timedelta(hours=1)
# A key younger than this may belong to an account that is not committed yet.
_NEW_KEY_AGE = timedelta(days=1)
_BEFORE_ALL = UUID(int=0)


# ── The ring ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class KeyBatch:
    """Result of one transaction: the last user, how many keys changed, and the users whose keys could not change."""

    last: UUID
    done: int
    skipped: list[UUID]


def rewrap(batch: int = 500) -> Iterator[KeyBatch]:
    """Wrap all data keys with the ring's newest key, `batch` of them in each transaction.

    It may run while keys are in use, in several processes at once, and again after an interruption: the data keys
    themselves do not change. A key that the ring does not open is skipped.
    """
    ring: crypto.KeyRing = settings.KEY_RING
    older = [key_id for key_id in ring.ids if key_id != ring.newest]
    broken: set[UUID] = set()
    wait = False  # the last round waits for keys that another rotation has locked, which may be rolled back
    while True:
        after = _BEFORE_ALL
        while found := _rewrap(older, after, batch, wait):
            yield found
            broken.update(found.skipped)
            after = found.last
        with keys_in_use() as table:
            if not table.filter(ring_key__in=older).exclude(pk__in=broken).exists():
                return
        wait = True


def _rewrap(older: list[str], after: UUID, batch: int, wait: bool) -> KeyBatch | None:
    with keys_in_use() as table, transaction.atomic(using=table.db):
        rows = list(
            table.select_for_update(skip_locked=not wait)
            .filter(ring_key__in=older, pk__gt=after)
            .order_by("pk")[:batch]
        )
        broken = []
        for row in rows:
            try:
                row.ring_key, row.wrapped = settings.KEY_RING.wrap(unwrap(row), str(row.pk))
            except crypto.SealBroken:
                log.error("key.unreadable", user_id=str(row.pk), ring_key=row.ring_key)
                broken.append(row.pk)
        done = [row for row in rows if row.pk not in broken]
        table.bulk_update(done, ["ring_key", "wrapped"])
    return KeyBatch(rows[-1].pk, len(done), broken) if rows else None


def count_by_ring_key() -> Counter[str]:
    """Return how many data keys each key of the ring wraps, in both databases."""
    found: Counter[str] = Counter()
    with keys_in_use() as table:
        found.update(_by_ring_key(table))
    if has_own_database():  # counts keys that have not been moved yet
        found.update(_by_ring_key(UserKey.objects.all()))
    del found[UserKey.SEPARATE]
    return found


def _by_ring_key(table: QuerySet[Any]) -> dict[str, int]:
    return dict(table.order_by().values_list("ring_key").annotate(Count("pk")))


# ── Two databases ───────────────────────────────────────────────────────────────────────────────────────


@dataclass
class KeyAudit:
    """Mismatches of accounts and keys, such as after one of the two databases was restored from a backup."""

    doubled: int = 0  # accounts with two different keys
    lost: list[UUID] = field(default_factory=list)  # accounts without their key
    orphans: list[UUID] = field(default_factory=list)  # keys without their account


def move_to_own_database(batch: int = 500) -> int:
    """Move keys from the main database to their own. It can be repeated after an interruption. Returns how many."""
    if not has_own_database():
        return 0
    moved, after = 0, _BEFORE_ALL
    while found := _move_batch(after, batch):
        moved += found.done
        after = found.last
    return moved


@transaction.atomic
def _move_batch(after: UUID, batch: int) -> KeyBatch | None:
    here = list(
        UserKey.objects.select_for_update(skip_locked=True)
        .exclude(ring_key=UserKey.SEPARATE)
        .filter(pk__gt=after)
        .order_by("pk")[:batch]
    )
    if not here:
        return None
    with separate_keys() as separate:
        separate.bulk_create([copy_of(row) for row in here], ignore_conflicts=True)
        there = separate.in_bulk([row.pk for row in here])
    doubled = [row.pk for row in here if not is_same_key(row, there[row.pk])]
    same = [row.pk for row in here if row.pk not in doubled]
    UserKey.objects.filter(pk__in=same).update(ring_key=UserKey.SEPARATE, wrapped=b"")
    return KeyBatch(here[-1].pk, len(same), doubled)


def finish_interrupted() -> int:
    """Finish interrupted steps between the two databases. Returns how many keys of deleted accounts it destroyed.

    A key is destroyed only if its account's deletion had begun: a missing account may be restored from a backup.
    """
    if not has_own_database():
        return 0
    move_to_own_database()
    before = timezone.now() - _DELETION_TIMEOUT
    with separate_keys() as separate:
        doomed = set(separate.filter(doomed_at__lt=before).values_list("pk", flat=True))
    alive = set(User.objects.filter(pk__in=doomed, deletion=None).values_list("pk", flat=True))
    with separate_keys() as separate:
        separate.filter(pk__in=alive, doomed_at__lt=before).update(doomed_at=None)
        return separate.filter(pk__in=doomed - alive).delete()[0]


def audit(batch: int = 1000) -> KeyAudit:
    """Compare accounts with the keys in the keys' own database, and write missing markers of accounts' keys."""
    found = KeyAudit()
    if not has_own_database():
        return found
    found.doubled = UserKey.objects.exclude(ring_key=UserKey.SEPARATE).count()
    after = _BEFORE_ALL
    while page := _next_page(SeparateKey, after, batch):
        users = set(User.objects.filter(pk__in=page, deletion=None).values_list("pk", flat=True))
        _write_markers(users)
        with separate_keys() as separate:
            orphans = separate.filter(pk__in=set(page) - users, created_at__lt=timezone.now() - _NEW_KEY_AGE)
            found.orphans += orphans.values_list("pk", flat=True)
        after = page[-1]
    after = _BEFORE_ALL
    while page := _next_page(UserKey, after, batch):
        with separate_keys() as separate:
            there = set(separate.filter(pk__in=page).values_list("pk", flat=True))
        found.lost += [pk for pk in page if pk not in there]
        after = page[-1]
    return found


@transaction.atomic
def _write_markers(user_ids: set[UUID]) -> None:
    """Mark these accounts' keys as being in the other database: a rollback may have lost the marker."""
    unmarked = user_ids - set(UserKey.objects.filter(pk__in=user_ids).values_list("pk", flat=True))
    users = User.objects.select_for_update(no_key=True).filter(pk__in=unmarked).order_by("pk").only("pk")
    markers = [UserKey(user_id=user.pk, ring_key=UserKey.SEPARATE, wrapped=b"") for user in users]
    UserKey.objects.bulk_create(markers, ignore_conflicts=True)


def shred_orphans(user_ids: list[UUID]) -> int:
    """Destroy for ever the keys of accounts that do not exist (see `audit`). Returns how many."""
    gone = set(user_ids) - set(User.objects.filter(pk__in=user_ids).values_list("pk", flat=True))
    with separate_keys() as separate:
        return separate.filter(pk__in=gone).delete()[0]


def _next_page(model: type[SeparateKey | UserKey], after: UUID, batch: int) -> list[UUID]:
    with separate_keys() as separate:
        table: QuerySet[Any] = separate if model is SeparateKey else UserKey.objects.all()
        return list(table.filter(pk__gt=after).order_by("pk").values_list("pk", flat=True)[:batch])
