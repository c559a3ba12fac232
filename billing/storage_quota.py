"""Storage quotas: amounts that a user stores, by kind, and room that is reserved before the first byte comes.

A reservation is one statement that compares with the plan, so that concurrent ones get no more than fits. It is kept
(`keep`) with the amount that was really stored, in the transaction that stores it, or released (`release`); a forgotten
one expires. Deleting gives room back (`give_back`), even if the account is over its plan.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F, QuerySet, Sum
from django.db.models.functions import Now

from adiuva.accounts.models import User
from adiuva.core.errors import Unavailable
from billing import entitlements
from billing.models import StorageReservation, StoredAmount

Kind = Literal["storage_bytes", "backup_bytes", "vectors"]

_EXPIRED_AT_ONCE: Final = 500

# The statement that reserves also reads the plan. The column's name is one of three, and not from outside.
_RESERVE: Final = """
WITH granted AS (
    UPDATE billing_storedamount AS amount SET reserved = amount.reserved + %(n)s
    FROM accounts_user AS account JOIN billing_plan AS plan ON plan.tier = account.tier
    WHERE amount.user_id = %(user)s AND amount.kind = %(kind)s AND account.id = amount.user_id
        AND (NOT %(limited)s OR plan.{kind} IS NULL OR amount.used + amount.reserved + %(n)s <= plan.{kind})
    RETURNING amount.user_id, amount.kind
)
INSERT INTO billing_storagereservation (id, user_id, kind, amount, expires_at)
SELECT %(id)s, user_id, kind, %(n)s, now() + %(lifetime)s FROM granted RETURNING id
"""


@transaction.atomic
def reserve(user_id: uuid.UUID, kind: Kind, n: int, *, lifetime: dt.timedelta) -> uuid.UUID:
    """Reserve room for `n` more. Raises QuotaExceeded or NoSuchUser, and Unavailable if the plan changes meanwhile."""
    account = entitlements.look(user_id)
    reservation = _reserve(user_id, kind, n, lifetime) if account.limit(kind) != 0 else None
    if reservation is None:
        _require_room(account, kind, n)
        reservation = _reserve(user_id, kind, n, lifetime)
    if reservation is None:
        raise Unavailable("the plan was changed meanwhile: try again")
    return reservation


def _require_room(account: entitlements.Account, kind: Kind, n: int) -> None:
    """Raise the reason of a failed reservation: a missing row, or no room. The row's lock makes both certain."""
    StoredAmount.objects.get_or_create(user_id=account.user_id, kind=kind)
    amount = StoredAmount.objects.select_for_update().get(user_id=account.user_id, kind=kind)
    account.require_any(kind, used=amount.used)
    account.require_room(kind, n, used=amount.used + amount.reserved)


def _reserve(user_id: uuid.UUID, kind: Kind, n: int, lifetime: dt.timedelta) -> uuid.UUID | None:
    assert kind in StoredAmount.Kind.values
    values: dict[str, Any] = {
        "id": uuid.uuid4(),
        "user": user_id,
        "kind": kind,
        "n": n,
        "limited": settings.PLANS,
        "lifetime": lifetime,
    }
    with connection.cursor() as cursor:
        cursor.execute(_RESERVE.format(kind=kind), values)
        found = cursor.fetchone()
    return found[0] if found else None


@transaction.atomic
def keep(reservation_id: uuid.UUID, n: int, *, instead_of: int = 0) -> bool:
    """Count `n` as stored in place of the reservation. `instead_of`: the amount that it replaces and that is given
    back.

    Returns False if the reservation has expired: then nothing is counted, and nothing may be stored.
    """
    row = _take(reservation_id)
    if row is None:
        return False
    if n > row.amount:
        raise ValueError("more is stored than was reserved")
    _amount(row).update(reserved=F("reserved") - row.amount, used=F("used") + n - instead_of)
    return True


@transaction.atomic
def release(reservation_id: uuid.UUID) -> None:
    """Give a reservation back; an expired one is gone already."""
    row = _take(reservation_id)
    if row is not None:
        _amount(row).update(reserved=F("reserved") - row.amount)


@transaction.atomic
def add(user_id: uuid.UUID, kind: Kind, n: int) -> None:
    """Count `n` more as stored, in the transaction that stores it, without reserving before. Raises what `reserve`
    does.

    Data that replaces as much or more is always counted, even if the account is over its plan.
    """
    if n < 0:
        give_back(user_id, kind, -n)
        return
    account = entitlements.look(user_id)
    limit = account.limit(kind)
    for _ in range(2):
        rows = StoredAmount.objects.filter(user_id=user_id, kind=kind)
        if limit is not None and n:
            rows = rows.filter(used__lte=limit - n - F("reserved"))
        elif limit == 0:
            rows = rows.filter(used__gt=0)  # else it can replace nothing
        if rows.update(used=F("used") + n):
            return
        _require_room(account, kind, n)
    raise Unavailable("the plan was changed meanwhile: try again")


def amounts(user_id: uuid.UUID) -> dict[str, tuple[int, int, int | None]]:
    """Return, by kind, the used and the reserved amount, and the plan's limit."""
    rows = StoredAmount.objects.filter(user_id=user_id).values_list("kind", "used", "reserved")
    found = {kind: (used, reserved) for kind, used, reserved in rows}
    account = entitlements.look(user_id)
    kinds: tuple[Kind, ...] = ("storage_bytes", "backup_bytes", "vectors")
    return {kind: (*found.get(kind, (0, 0)), account.limit(kind)) for kind in kinds}


def total() -> int:
    """Return the stored and reserved bytes of all users."""
    bytes_ = StoredAmount.objects.exclude(kind=StoredAmount.Kind.VECTORS)
    found: int | None = bytes_.aggregate(n=Sum(F("used") + F("reserved")))["n"]
    return found or 0


def counted() -> Iterator[tuple[uuid.UUID, Kind, int, int]]:
    """Yield the bytes used and reserved, by user and kind."""
    rows: QuerySet[Any, Any] = StoredAmount.objects.values_list("user_id", "kind", "used", "reserved")
    yield from rows.iterator(chunk_size=2_000)


@transaction.atomic
def recount(user_id: uuid.UUID, kind: Kind, count: Callable[[], int]) -> None:
    """Set the used amount to the result of `count`. Others that store count first, and wait here until it is set."""
    mine = StoredAmount.objects.filter(user_id=user_id, kind=kind)
    if not mine.exists() and User.objects.filter(pk=user_id).exists():
        mine.get_or_create(user_id=user_id, kind=kind)
    if mine.select_for_update().first() is not None:
        mine.update(used=count())


def give_back(user_id: uuid.UUID, kind: Kind, n: int) -> None:
    """Give back the room of deleted data, in the transaction that deletes it."""
    StoredAmount.objects.filter(user_id=user_id, kind=kind).update(used=F("used") - n)


def expire() -> int:
    """Release expired reservations, whose processes have died. Returns how many."""
    late = StorageReservation.objects.filter(expires_at__lt=Now()).order_by("expires_at")
    ids = list(late.values_list("pk", flat=True)[:_EXPIRED_AT_ONCE])
    for reservation_id in ids:
        release(reservation_id)
    return len(ids)


def _take(reservation_id: uuid.UUID) -> StorageReservation | None:
    """Delete and return the reservation. Only one caller can delete it, so it is counted once."""
    row = StorageReservation.objects.filter(pk=reservation_id).select_for_update().first()
    if row is not None:
        StorageReservation.objects.filter(pk=reservation_id).delete()
    return row


def _amount(row: StorageReservation) -> QuerySet[StoredAmount]:
    return StoredAmount.objects.filter(user_id=row.user_id, kind=row.kind)
