"""Verification of stored objects by their checksums: all of them within a month, the oldest first.

A damaged object is marked: its owner sees that in the list, and operators see a log entry. Only the client's own copy
can repair it: new bytes under the same id or time take its place.

For vectors, the bytes beside them have a checksum. A space is verified as a whole, in the order of its ids.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import structlog
from django.db import connection
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.object_store.store import ObjectMissing, store
from adiuva.vault.models import Backup, Record, Vector, VectorSpace

log = structlog.get_logger(__name__)

EVERY: Final = dt.timedelta(days=30)
_AT_ONCE: Final = 100
_COUNT: Final = """
INSERT INTO vault_scrub AS today (day, checked, bytes, corrupt, missing)
VALUES (%(day)s, %(checked)s, %(bytes)s, %(corrupt)s, %(missing)s)
ON CONFLICT (day) DO UPDATE SET checked = today.checked + excluded.checked, bytes = today.bytes + excluded.bytes,
    corrupt = today.corrupt + excluded.corrupt, missing = today.missing + excluded.missing
"""


@dataclass
class ScrubCounts:
    checked: int = 0
    bytes: int = 0
    corrupt: int = 0
    missing: int = 0


def run(*, older_than: dt.timedelta = EVERY, within_s: float = 300.0) -> ScrubCounts:
    """Verify objects not verified for this long, until the time is over. Raises StorageAway; a later call goes on."""
    found, end = ScrubCounts(), time.monotonic() + within_s
    before = timezone.now() - older_than
    try:
        for model in (Backup, Record):
            for row in _due(model, before):
                _verify(row, found)
                if time.monotonic() > end:
                    return found
        while _verify_vectors(before, found) and time.monotonic() < end:
            pass
    finally:
        _count(found)
    return found


def _count(found: ScrubCounts) -> None:
    if found.checked:
        with connection.cursor() as cursor:
            cursor.execute(_COUNT, {"day": timezone.now().date(), **vars(found)})


def _due(model: type[Backup] | type[Record], before: dt.datetime) -> Iterator[Backup | Record]:
    rows: QuerySet[Any] = model._default_manager.filter(corrupt=False, verified_at__lt=before)
    if model is Record:
        rows = rows.exclude(blob=None, object=None)
    rows = rows.order_by("verified_at")
    while batch := list(rows.values_list("pk", flat=True)[:_AT_ONCE]):
        for pk in batch:
            if (row := rows.filter(pk=pk).first()) is not None:  # it may have been purged meanwhile
                yield row


def _verify(row: Backup | Record, found: ScrubCounts) -> None:
    same = type(row)._default_manager.filter(pk=row.pk, checksum=row.checksum)
    if row.object is not None:
        same = same.filter(object=row.object)
    found.checked, found.bytes = found.checked + 1, found.bytes + row.size
    try:
        digest = _digest(row)
    except ObjectMissing:
        digest = None
    if digest == bytes(row.checksum):
        same.update(verified_at=Now())
    elif mark(row):
        found.corrupt += 1
        found.missing += digest is None
    else:  # it was replaced or deleted while it was read
        same.update(verified_at=Now())


def _digest(row: Backup | Record) -> bytes:
    if row.object is None:
        assert isinstance(row, Record)
        return hashlib.sha256(row.blob or b"").digest()
    digest = hashlib.sha256()
    for piece in store().read(row.object, 0, row.size):
        digest.update(piece)
    return digest.digest()


def _verify_vectors(before: dt.datetime, found: ScrubCounts) -> bool:
    """Verify some vectors of the space that is due first. Returns False if none is due."""
    space = VectorSpace.objects.filter(verified_at__lt=before).order_by("verified_at").first()
    if space is None:
        return False
    rows = Vector.objects.filter(space=space, id__gt=space.verified_to).order_by("id")
    batch = list(rows.only("pk", "id", "blob", "checksum", "size")[:_AT_ONCE])
    for row in batch:
        found.checked, found.bytes = found.checked + 1, found.bytes + row.size
        if hashlib.sha256(row.blob).digest() != bytes(row.checksum):
            same = Vector.objects.filter(pk=row.pk, checksum=row.checksum, corrupt=False)
            if same.update(corrupt=True):
                found.corrupt += 1
                ids = {"row": str(row.pk), "user_id": str(space.user_id)}
                log.error("vault.corrupt", kind="vector", **ids)
    this = VectorSpace.objects.filter(pk=space.pk)
    if batch:
        this.update(verified_to=batch[-1].id)
    else:
        this.update(verified_to="", verified_at=Now())
    return True


def note_lost(row: Backup | Record) -> None:
    """Mark a row whose object is not in the store as damaged, and count it."""
    if mark(row):
        _count(ScrubCounts(checked=1, corrupt=1, missing=1))


def mark(row: Backup | Record) -> bool:
    """Mark a row's bytes as damaged, unless others have taken their place."""
    same = type(row)._default_manager.filter(pk=row.pk, object=row.object, checksum=row.checksum)
    marked = bool(same.update(corrupt=True, verified_at=Now()))
    if marked:
        kind = "backup" if isinstance(row, Backup) else "record"
        log.error("vault.corrupt", kind=kind, row=str(row.pk), user_id=str(row.user_id), name=row.object)
    return marked
