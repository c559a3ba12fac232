"""Sweep of the vault: abandoned uploads, and the bytes of records that were deleted long enough ago."""

from __future__ import annotations

import datetime as dt
from typing import Final

from django.db import transaction

from adiuva.vault import uploads
from adiuva.vault.models import Record

UNDELETE_WITHIN: Final = dt.timedelta(days=7)
_AT_ONCE: Final = 500


def run() -> dict[str, int]:
    """Sweep. It is safe at any time, and by several processes at once."""
    return {"uploads": uploads.expire(), "purged": purge()}


@transaction.atomic
def purge() -> int:
    """Delete the bytes of records that were deleted long enough ago; the tombstone stays. Returns how many."""
    late = Record.objects.deleted_before(UNDELETE_WITHIN).select_for_update(skip_locked=True)
    numbers = list(late.values_list("pk", flat=True)[:_AT_ONCE])
    return Record.objects.filter(pk__in=numbers).update(blob=None, object=None)
