"""Part of the vault in an account's archive: what clients stored, as it is, sealed by them.

The bytes are pieces in base64, each on its own line, so that no object is whole in memory.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any, Final
from uuid import UUID

from adiuva.core.export_archive import ROWS_PER_BATCH, ArchivePart, exported_columns, register
from adiuva.core.leases import LEASE_FIELDS
from adiuva.object_store.store import ObjectMissing, store
from adiuva.vault.models import Backup, Record, Upload, Vector, VectorSpace

_PIECE_BYTES: Final = 384 * 1024
_HIDDEN: Final = ("user", "object", "verified_at")


def _records(user_id: UUID) -> Iterator[Mapping[str, Any]]:
    shown = exported_columns(Record, but=[*_HIDDEN, "number", "seq"])
    for number in list(Record.objects.of(user_id).order_by("number").values_list("pk", flat=True)):
        if (record := Record.objects.filter(pk=number).first()) is not None:
            yield {
                **{name: getattr(record, name) for name in shown},
                "checksum": bytes(record.checksum).hex(),
            }
            yield from _bytes_of(record, str(record.id))


def _backups(user_id: UUID) -> Iterator[Mapping[str, Any]]:
    shown = exported_columns(Backup, but=_HIDDEN)
    for backup in list(Backup.objects.of(user_id).newest_first()):
        yield {**{name: getattr(backup, name) for name in shown}, "checksum": bytes(backup.checksum).hex()}
        yield from _bytes_of(backup, str(backup.pk))


def _bytes_of(row: Record | Backup, name: str) -> Iterator[Mapping[str, Any]]:
    """Yield pieces of what is stored; `{"unreadable": true}` if it is damaged or gone."""
    start = 0
    try:
        for piece in _pieces(row):
            for begin in range(0, len(piece), _PIECE_BYTES):
                part = piece[begin : begin + _PIECE_BYTES]
                yield {"of": name, "start": start, "bytes": base64.b64encode(part).decode()}
                start += len(part)
    except ObjectMissing:
        yield {"of": name, "start": start, "unreadable": True}


def _pieces(row: Record | Backup) -> Iterator[bytes]:
    if row.object is not None:
        yield from store().read(row.object, 0, row.size)
    elif isinstance(row, Record) and row.blob:
        yield bytes(row.blob)


def _uploads(user_id: UUID) -> Iterator[Mapping[str, Any]]:
    shown = exported_columns(Upload, but=["user", "object", "state", "reservation", *LEASE_FIELDS])
    yield from Upload.objects.of(user_id).order_by("created_at", "id").values(*shown)


def _vectors(user_id: UUID) -> Iterator[Mapping[str, Any]]:
    shown = exported_columns(Vector, but=["number", "space"])
    for space in VectorSpace.objects.of(user_id).order_by("space"):
        yield {"space": space.space, "dimensions": space.dimensions, "count": space.count}
        rows = Vector.objects.filter(space=space).order_by("number").values(*shown, "blob", "checksum")
        for row in rows.iterator(chunk_size=ROWS_PER_BATCH):
            blob, checksum = base64.b64encode(row.pop("blob")).decode(), bytes(row.pop("checksum")).hex()
            yield {"space": space.space, **row, "blob": blob, "checksum": checksum}


register(
    ArchivePart("vault_records.jsonl", "Records that your clients stored, with their bytes.", _records),
    ArchivePart("vault_backups.jsonl", "Backups of your clients, with their bytes.", _backups),
    ArchivePart("vault_vectors.jsonl", "Vectors that your clients stored, with their bytes.", _vectors),
    ArchivePart("vault_uploads.jsonl", "Uploads that are not complete.", _uploads),
)
