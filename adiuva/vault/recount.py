"""Comparison of the counted amounts of each account with its rows.

Counts and rows change in one transaction, so they are equal. A difference is logged, and the used amount is corrected;
a reserved amount ends with its uploads.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
from django.db import connection, transaction
from django.db.models import Count, Sum

from adiuva.vault import limits
from adiuva.vault.limits import Kind
from adiuva.vault.models import Backup, Record, Upload, Vector

log = structlog.get_logger(__name__)

_RESERVED: Final[dict[str, Kind]] = {"storage": "storage_bytes", "backup": "backup_bytes"}


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of an account. `used` and `reserved`: how much more is counted than is there; negative if less is."""

    user_id: uuid.UUID
    kind: Kind
    used: int
    reserved: int


def compare() -> list[Difference]:
    """Log and return the differences, and correct used amounts. It must not be called within a transaction."""
    found = _differences()
    for each in found:
        log.error(
            "vault.count_differs",
            user_id=str(each.user_id),
            kind=each.kind,
            used=each.used,
            reserved=each.reserved,
        )
        if each.used:
            limits.amounts().recount(each.user_id, each.kind, partial(_held, each.user_id, each.kind))
    return found


def _differences() -> list[Difference]:
    used, reserved = Counter[tuple[uuid.UUID, Kind]](), Counter[tuple[uuid.UUID, Kind]]()
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")  # all as of one moment
        for user_id, kind, in_use, on_its_way in limits.amounts().counted():
            used[user_id, kind], reserved[user_id, kind] = in_use, on_its_way
        for kind, rows in _sums():
            used.subtract({(user_id, kind): held for user_id, held in rows})
        for purpose, kind in _RESERVED.items():
            uploads = Upload.objects.filter(purpose=purpose).values("user_id").annotate(n=Sum("length"))
            reserved.subtract({(user_id, kind): n for user_id, n in uploads.values_list("user_id", "n")})
    names = sorted(name for name in {*used, *reserved} if used[name] or reserved[name])
    return [Difference(*name, used[name], reserved[name]) for name in names]


def _sums(user_id: uuid.UUID | None = None) -> Iterable[tuple[Kind, Iterable[tuple[uuid.UUID, int]]]]:
    """Return how many bytes the rows hold, by kind and account, for all accounts or for one."""
    records, backups, vectors = Record.objects.live(), Backup.objects.all(), Vector.objects.all()
    if user_id is not None:
        records, backups, vectors = records.of(user_id), backups.of(user_id), vectors.of(user_id)
    of = vectors.values("space__user_id")
    yield "storage_bytes", records.values("user_id").annotate(n=Sum("size")).values_list("user_id", "n")
    yield "storage_bytes", of.annotate(n=Sum("size")).values_list("space__user_id", "n")
    yield "backup_bytes", backups.values("user_id").annotate(n=Sum("size")).values_list("user_id", "n")
    yield "vectors", of.annotate(n=Count("pk")).values_list("space__user_id", "n")


def _held(user_id: uuid.UUID, kind: Kind) -> int:
    return sum(held for each, rows in _sums(user_id) if each == kind for _, held in rows)
