"""Limit of what the installation stores: a cap for all accounts together, and the free space of the store's disk.

limits.py has the limits of one account.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from django.conf import settings
from django.db.models import F, Sum

from adiuva.object_store.store import StorageFull, store
from adiuva.vault import limits
from adiuva.vault.models import Upload

_KNOWN_FOR_S: Final = 10.0
_LOOKED_AGAIN_S: Final = 1.0  # seconds; a refusal looks again, but no more often


class Known:
    """Sum over all accounts, with what this process granted since. It lacks what others granted within 10 s.

    An exact sum would make all writers wait for each other, and a new sum for each writer would become slower the more
    there are.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self._bytes, self._counted = 0, float("-inf")

    def take(self, size: int, most: int) -> None:
        """Add these bytes. Raises StorageFull if there would be more than `most`."""
        for age in (_KNOWN_FOR_S, _LOOKED_AGAIN_S):
            if self._within(age) + size <= most:
                self._bytes += size
                return
        raise StorageFull

    def _within(self, age: float) -> int:
        now = time.monotonic()
        if now - self._counted >= age:
            self._bytes, self._counted = self._count(), now
        return self._bytes


def _stored() -> int:
    return limits.amounts().total()


def _still_to_come() -> int:
    """Return the bytes that open uploads have not brought yet."""
    return Upload.objects.aggregate(n=Sum(F("length") - F("offset")))["n"] or 0


_total = Known(_stored)
_expected = Known(_still_to_come)


def require(size: int) -> None:
    """Require room for this many more bytes, whoever stores them. Raises StorageFull."""
    if (most := settings.STORE["most_bytes"]) and size > 0:
        _total.take(size, most)


def require_in_store(size: int) -> None:
    """Require room for an object of this size, besides what open uploads still bring. Raises StorageFull."""
    if (free := store().room()) is not None:
        _expected.take(size, free)
