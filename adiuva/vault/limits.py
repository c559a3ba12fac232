"""Limits of what an account may store. The app that counts is above this one and registers itself when it is ready.
Without it, everything is granted, as long as the installation has room (capacity.py)."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, Protocol

Kind = Literal["storage_bytes", "backup_bytes", "vectors"]
Amount = tuple[int, int, int | None]


class Amounts(Protocol):
    """Counter of bytes, and of vectors, by account and kind. Refusals are its own errors, with 402 or 403."""

    def reserve(self, user_id: uuid.UUID, kind: Kind, n: int, /, *, lifetime: dt.timedelta) -> uuid.UUID:
        """Keep room free for something on its way."""

    def keep(self, reservation_id: uuid.UUID, n: int, /, *, instead_of: int = 0) -> bool:
        """Count it in place of the reservation, because it came. Returns False if the reservation has expired."""

    def release(self, reservation_id: uuid.UUID, /) -> None:
        """Give the reservation back, because it does not come."""

    def add(self, user_id: uuid.UUID, kind: Kind, n: int, /) -> None:
        """Count `n` more, or fewer, in the transaction that stores or deletes them."""

    def amounts(self, user_id: uuid.UUID, /) -> Mapping[str, Amount]:
        """Return used, reserved and limit by kind."""

    def total(self) -> int:
        """Return the bytes of all accounts, including those that are reserved."""

    def counted(self) -> Iterable[tuple[uuid.UUID, Kind, int, int]]:
        """Return the bytes used and reserved, by account and kind."""

    def recount(self, user_id: uuid.UUID, kind: Kind, count: Callable[[], int], /) -> None:
        """Set the used amount to what `count` finds, while nobody else changes it."""


class _Unlimited:
    """Stand-in without an app that counts."""

    def reserve(self, user_id: uuid.UUID, kind: Kind, n: int, /, *, lifetime: dt.timedelta) -> uuid.UUID:
        return uuid.uuid4()

    def keep(self, reservation_id: uuid.UUID, n: int, /, *, instead_of: int = 0) -> bool:
        return True

    def release(self, reservation_id: uuid.UUID, /) -> None: ...

    def add(self, user_id: uuid.UUID, kind: Kind, n: int, /) -> None: ...

    def amounts(self, user_id: uuid.UUID, /) -> Mapping[str, Amount]:
        return {}

    def total(self) -> int:
        return 0

    def counted(self) -> Iterable[tuple[uuid.UUID, Kind, int, int]]:
        return ()

    def recount(self, user_id: uuid.UUID, kind: Kind, count: Callable[[], int], /) -> None: ...


def _any_request(user_id: uuid.UUID, tier: str) -> None: ...


_amounts: Amounts = _Unlimited()
_count_request: Callable[[uuid.UUID, str], None] = _any_request


def register(amounts: Amounts, count_request: Callable[[uuid.UUID, str], None]) -> None:
    """Register the app's counter. `count_request` counts a request that does not pass REST framework's throttle, and
    raises the error that refuses it."""
    global _amounts, _count_request
    _amounts, _count_request = amounts, count_request


def amounts() -> Amounts:
    return _amounts


def count_request(user_id: uuid.UUID, tier: str) -> None:
    _count_request(user_id, tier)
