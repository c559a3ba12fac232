"""Deletes of rows that are kept no longer, in short transactions: after a day of downtime there may be millions."""

from __future__ import annotations

from typing import Any, Final

from django.db.models import QuerySet

BATCH: Final = 1_000
# In one call of what runs by a schedule; its next call goes on.
MOST: Final = 50_000


def delete_in_batches(rows: QuerySet[Any], *, most: int | None = MOST) -> int:
    """Delete rows and what belongs to them, in the order of `rows`. Returns how many of `rows`; None is all of them."""
    deleted = 0
    while most is None or deleted < most:
        ids = list(rows.values_list("pk", flat=True)[:BATCH])
        if ids:
            rows.model._base_manager.filter(pk__in=ids).delete()
            deleted += len(ids)
        if len(ids) < BATCH:
            break
    return deleted
