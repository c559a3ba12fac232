"""References from the vault's rows to objects of the store."""

from __future__ import annotations

import uuid
from collections.abc import Collection

from adiuva.object_store.models import Garbage
from adiuva.vault import scrub
from adiuva.vault.models import Backup, Record, Upload


def referred(names: Collection[str]) -> set[str]:
    """Return those of these objects that a row refers to."""
    rows = [model._default_manager.filter(object__in=names) for model in (Record, Backup, Upload)]
    return {name for found in rows for name in found.values_list("object", flat=True) if name is not None}


def expected(shard: str) -> set[str]:
    """Return the objects of whole records and backups in a part of the store, except known damaged ones."""
    rows = [
        model._default_manager.filter(object__startswith=f"{shard}/", corrupt=False)
        for model in (Record, Backup)
    ]
    return {name for found in rows for name in found.values_list("object", flat=True) if name is not None}


def lost(name: str) -> None:
    """Mark the row of an object that is gone as damaged."""
    for model in (Record, Backup):
        for row in model._default_manager.filter(object=name):
            scrub.note_lost(row)


def forget_owner(user_id: uuid.UUID) -> None:
    """Queue the objects of an account that this transaction deletes. They go at once, and nothing names their owner."""
    Garbage.objects.filter(owner=user_id).update(owner=None)
