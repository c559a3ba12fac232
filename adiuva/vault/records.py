"""Operations on records. Every change takes the account's counter first, so that changes have one order."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from typing import Any, Final

from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now

from adiuva.core.errors import Invalid
from adiuva.vault import capacity, limits, uploads
from adiuva.vault.errors import ChangedMeanwhile, ChecksumMismatch, IdTaken, NotStored
from adiuva.vault.models import Record
from adiuva.vault.uploads import Whole

INLINE_BYTES: Final = 1024 * 1024
_NEXT: Final = """
INSERT INTO vault_changecounter (user_id, seq, epoch) VALUES (%s, 1, gen_random_uuid())
ON CONFLICT (user_id) DO UPDATE SET seq = vault_changecounter.seq + 1 RETURNING seq
"""


@dataclass(frozen=True, slots=True)
class Inline:
    """Few bytes that came with the request."""

    data: bytes
    checksum: bytes


Content = Inline | Whole


@dataclass(frozen=True, slots=True)
class Precondition:
    """State that the client expects: one of these checksums, anything, or nothing. By default it does not say."""

    matches: frozenset[bytes] | None = None
    exists: bool = False
    is_absent: bool = False


def inline(data: bytes, checksum: bytes) -> Inline:
    """Return the bytes of a request. Raises ChecksumMismatch, or Invalid if they must be uploaded."""
    if len(data) > INLINE_BYTES:
        problem = "More than 1 MiB: upload it, and name the upload."
        raise Invalid("the record is too large for this request", fields={"blob": [problem]})
    found = hashlib.sha256(data).digest()
    if found != checksum:
        raise ChecksumMismatch(checksum.hex(), found.hex())
    return Inline(data, checksum)


def get(user_id: uuid.UUID, record_id: uuid.UUID) -> Record:
    """Return a record. Raises NotStored, also for a deleted one."""
    found = Record.objects.of(user_id).live().filter(id=record_id).first()
    if found is None:
        raise NotStored
    return found


def create(
    *, user_id: uuid.UUID, table: str, content: Content, record_id: uuid.UUID | None = None
) -> tuple[Record, bool]:
    """Create a record. Returns it, and whether it was made now. The client's own id with equal content is no error.

    Raises IdTaken, or the errors of limits.
    """
    only_new = Precondition(is_absent=True)
    try:
        return put(
            user_id=user_id, record_id=record_id or uuid.uuid4(), table=table, content=content, when=only_new
        )
    except ChangedMeanwhile:
        raise IdTaken from None


@transaction.atomic
def put(
    *,
    user_id: uuid.UUID,
    record_id: uuid.UUID,
    content: Content,
    when: Precondition,
    table: str | None = None,
) -> tuple[Record, bool]:
    """Store the content under this id. Returns the record, and whether it was made now.

    Equal content changes nothing, and is no conflict whatever the client expected. Raises NotStored if there is no
    record and it may not be made, ChangedMeanwhile, or the errors of limits.
    """
    seq = _next_change(user_id)
    found = Record.objects.of(user_id).without_bytes().filter(id=record_id).first()
    live = found is not None and found.deleted_at is None
    if found is not None and live and bytes(found.checksum) == content.checksum and not found.corrupt:
        _drop(content)
        return found, False
    _require(found if live else None, found, when)
    if not live and not (when.is_absent and table):
        raise NotStored
    old = found.size if found is not None and live else 0
    _count(user_id, content, instead_of=old)
    values: dict[str, Any] = {
        "checksum": content.checksum,
        "seq": seq,
        "deleted_at": None,
        "corrupt": False,
        **_bytes_of(content),
    }
    if found is None:
        assert table is not None
        made = Record.objects.create(user_id=user_id, id=record_id, table=table, **values)
        made.refresh_from_db(fields=["created_at", "updated_at"])
        return made, True
    if not live:
        values["table"] = table
    return _changed(found, values), not live


def _next_change(user_id: uuid.UUID) -> int:
    """Return the number of this change. The account's other writers wait until the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute(_NEXT, [user_id])
        found: int = cursor.fetchone()[0]
    return found


def _require(live: Record | None, found: Record | None, when: Precondition) -> None:
    met = not (when.is_absent and live)
    if when.matches is not None:
        met = live is not None and bytes(live.checksum) in when.matches
    elif when.exists:
        met = live is not None
    if not met and found is None:
        raise NotStored
    if not met and found is not None:
        checksum = bytes(live.checksum).hex() if live is not None else None
        raise ChangedMeanwhile(checksum=checksum, version=found.version, deleted=live is None)


def _count(user_id: uuid.UUID, content: Content, *, instead_of: int) -> None:
    if isinstance(content, Whole):
        uploads.take(content, instead_of=instead_of)
    else:
        added = len(content.data) - instead_of
        capacity.require(added)
        limits.amounts().add(user_id, "storage_bytes", added)


def _bytes_of(content: Content) -> dict[str, Any]:
    if isinstance(content, Whole):
        return {"blob": None, "object": content.object, "size": content.size, "verified_at": Now()}
    return {"blob": content.data, "object": None, "size": len(content.data), "verified_at": Now()}


def _drop(content: Content) -> None:
    if isinstance(content, Whole):
        uploads.discard(content)


def _changed(record: Record, values: dict[str, Any]) -> Record:
    """Write a change, which is a new version."""
    rows = Record.objects.filter(pk=record.pk, version=record.version)
    if not rows.update(version=F("version") + 1, updated_at=Now(), **values):
        raise AssertionError("the account's counter is held, and still the record changed")
    return Record.objects.without_bytes().get(pk=record.pk)


@transaction.atomic
def delete(*, user_id: uuid.UUID, record_id: uuid.UUID, when: Precondition) -> None:
    """Delete a record; for a week it can be brought back. Raises NotStored or ChangedMeanwhile."""
    seq = _next_change(user_id)
    found = Record.objects.of(user_id).live().without_bytes().filter(id=record_id).first()
    if found is None:
        raise NotStored
    _require(found, found, when)
    limits.amounts().add(user_id, "storage_bytes", -found.size)
    _changed(found, {"deleted_at": Now(), "seq": seq})


@transaction.atomic
def undelete(*, user_id: uuid.UUID, record_id: uuid.UUID) -> Record:
    """Bring a deleted record back. One that is not deleted stays. Raises NotStored, or the errors of limits."""
    seq = _next_change(user_id)
    found = Record.objects.of(user_id).without_bytes().filter(id=record_id).first()
    if found is None or (found.deleted_at is not None and not _has_bytes(found)):
        raise NotStored
    if found.deleted_at is None:
        return found
    limits.amounts().add(user_id, "storage_bytes", found.size)
    return _changed(found, {"deleted_at": None, "seq": seq})


def _has_bytes(record: Record) -> bool:
    return record.object is not None or Record.objects.filter(pk=record.pk).exclude(blob=None).exists()
