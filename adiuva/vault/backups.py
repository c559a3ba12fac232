"""Operations on backups. Each backup is one object; a client names it by the time when it made it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Final

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction

from adiuva.vault import limits, uploads
from adiuva.vault.errors import BaseMissing, ChecksumMismatch, NotStored, OthersBuildOnIt, TimestampTaken
from adiuva.vault.models import Backup
from adiuva.vault.uploads import Whole

log = structlog.get_logger(__name__)

MAX_MS: Final = 253_402_300_799_999  # the end of the year 9999, after which HTTP has no dates


@dataclass(frozen=True, slots=True)
class Description:
    """Description of a backup by its client, in the headers of its bytes."""

    version: int
    timestamp_ms: int
    checksum: bytes
    chunk_count: int = 1
    base_ms: int | None = None


def latest(user_id: uuid.UUID) -> Backup:
    """Return the newest backup. Raises NotStored."""
    found = Backup.objects.of(user_id).newest_first().first()
    if found is None:
        raise NotStored
    return found


def get(user_id: uuid.UUID, backup_id: uuid.UUID) -> Backup:
    """Return a backup by its time. Raises NotStored."""
    found = Backup.objects.of(user_id).filter(pk=backup_id).first()
    if found is None:
        raise NotStored
    return found


def is_there(user_id: uuid.UUID, wanted: Description) -> bool:
    """Return whether this very backup is stored, unharmed.

    Raises TimestampTaken if another backup of this time is stored, or BaseMissing.
    """
    found = Backup.objects.of(user_id).filter(timestamp_ms=wanted.timestamp_ms).first()
    if found is None:
        _require_base(user_id, wanted)
        return False
    if bytes(found.checksum) != wanted.checksum:
        raise TimestampTaken
    return not found.corrupt


def _require_base(user_id: uuid.UUID, described: Description) -> None:
    base = described.base_ms
    if base is not None and not Backup.objects.of(user_id).filter(timestamp_ms=base, corrupt=False).exists():
        raise BaseMissing


def store(user_id: uuid.UUID, described: Description, whole: Whole) -> Backup:
    """Make a backup of a complete upload. Raises ChecksumMismatch, TimestampTaken, BaseMissing or UploadExpired."""
    if whole.checksum != described.checksum:
        uploads.discard(whole)
        raise ChecksumMismatch(described.checksum.hex(), whole.checksum.hex())
    try:
        return _store(user_id, described, whole)
    except IntegrityError:
        found = Backup.objects.of(user_id).filter(timestamp_ms=described.timestamp_ms).first()
        if found is None:
            raise
        if bytes(found.checksum) != described.checksum:
            raise TimestampTaken from None
        uploads.discard(whole)  # another request brought the same backup
        return found


@transaction.atomic
def _store(user_id: uuid.UUID, described: Description, whole: Whole) -> Backup:
    _hold(user_id)
    _require_base(user_id, described)
    replaced = Backup.objects.of(user_id).filter(timestamp_ms=described.timestamp_ms, corrupt=True).first()
    uploads.take(whole, instead_of=replaced.size if replaced else 0)
    if replaced is not None:
        Backup.objects.filter(pk=replaced.pk).delete()
    made = Backup.objects.create(
        user_id=user_id,
        version=described.version,
        timestamp_ms=described.timestamp_ms,
        base_ms=described.base_ms,
        chunk_count=described.chunk_count,
        checksum=whole.checksum,
        size=whole.size,
        object=whole.object,
    )
    _retain(user_id)
    log.info("backup.stored", user_id=str(user_id), backup_id=str(made.pk), size=whole.size)
    return made


def _hold(user_id: uuid.UUID) -> None:
    """Keep other requests from storing or deleting a backup of this account until the transaction ends, if it has any
    backup.

    Call it before locking what is counted, so that no two transactions wait for each other.
    """
    list(Backup.objects.of(user_id).order_by("pk").select_for_update().values_list("pk"))


def _retain(user_id: uuid.UUID) -> None:
    """Delete the backups that came first, beyond those that are kept. The newest undamaged one is always kept.

    The order is that of arrival, because a client's clock may be wrong, and a backup that has just come must not be
    deleted at once. A backup is kept with the one that it builds on.
    """
    if not (most := settings.STORE["keep_backups"]):
        return
    mine = list(Backup.objects.of(user_id).order_by("-created_at", "-timestamp_ms"))
    intact = max((backup.timestamp_ms for backup in mine if not backup.corrupt), default=None)
    by_time = {backup.timestamp_ms: backup for backup in mine}
    kept: set[int] = set()
    for backup in mine:
        time: int | None = backup.timestamp_ms
        if len(kept) >= most and time != intact:
            continue
        while time in by_time and time not in kept:
            kept.add(time)
            time = by_time[time].base_ms
    for backup in mine:
        if backup.timestamp_ms not in kept:
            _delete(user_id, backup)


@transaction.atomic
def delete(*, user_id: uuid.UUID, backup_id: uuid.UUID) -> None:
    """Delete a backup. Raises NotStored or OthersBuildOnIt."""
    _hold(user_id)
    found = Backup.objects.of(user_id).filter(pk=backup_id).first()
    if found is None:
        raise NotStored
    if Backup.objects.of(user_id).filter(base_ms=found.timestamp_ms).exists():
        raise OthersBuildOnIt
    _delete(user_id, found)


def _delete(user_id: uuid.UUID, backup: Backup) -> None:
    """Delete a row; its trigger queues the object. Two requests that delete the same backup give its room back once."""
    deleted, _ = Backup.objects.filter(pk=backup.pk).delete()
    if deleted:
        limits.amounts().add(user_id, "backup_bytes", -backup.size)
