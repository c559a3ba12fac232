"""Uploads: begun with their length, for which room is kept; brought in one request or more; then made into something.

    upload = begin(user_id=..., purpose=..., length=...)
    receiver = open_receiver(user_id, upload.pk, offset=0)       # receiving.py: the lease is held
    receiver.write(data)
    receiver.end()                                               # or give_up(); then close()
    whole = complete(user_id, upload.pk, purpose, checksum)      # the object is whole, and has this checksum
    with transaction.atomic():
        take(whole)                                              # counted; the caller's row refers to the object now

A request that breaks off leaves what is safe. An upload that nobody continues expires, and its room is freed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import time
import uuid
from dataclasses import dataclass
from typing import Final

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.core import leases
from adiuva.core.leases import Lease, LeaseLost
from adiuva.object_store.models import queue
from adiuva.object_store.store import ObjectMissing, Progress, new_name, store
from adiuva.vault import capacity, limits
from adiuva.vault.errors import (
    ChecksumMismatch,
    NotStored,
    TooLong,
    TooManyUploads,
    UploadBusy,
    UploadExpired,
    UploadIncomplete,
    WrongPurpose,
)
from adiuva.vault.models import Upload

log = structlog.get_logger(__name__)

MOST_BYTES: Final = 80 << 30  # 10,000 parts of S3, of 8 MiB
MOST_OPEN: Final = 100  # uploads of one user
LEASE: Final = dt.timedelta(seconds=30)
RENEW_S: Final = 8.0
LONGEST: Final = dt.timedelta(days=7)
_EXPIRED_AT_ONCE: Final = 200

_KINDS: Final[dict[str, limits.Kind]] = {"storage": "storage_bytes", "backup": "backup_bytes"}


@dataclass(frozen=True, slots=True)
class Whole:
    """A complete upload whose checksum is right, under the lease of the request that makes something of it."""

    lease: Lease[Upload]
    object: str
    size: int
    checksum: bytes
    reservation: uuid.UUID


# ── Beginning ───────────────────────────────────────────────────────────────────────────────────────────


def begin(
    *, user_id: uuid.UUID, purpose: str, length: int, metadata: str = "", direct: bool = False
) -> Upload:
    """Keep room, and make the row, before the first byte.

    Raises TooLong, TooManyUploads, StorageFull, or what limits refuse.
    """
    if length > MOST_BYTES:
        raise TooLong(MOST_BYTES)
    if Upload.objects.of(user_id).count() >= MOST_OPEN:
        raise TooManyUploads(MOST_OPEN)
    capacity.require_in_store(length)
    capacity.require(length)
    with transaction.atomic():
        reservation = limits.amounts().reserve(
            user_id, _KINDS[purpose], length, lifetime=LONGEST + dt.timedelta(days=1)
        )
        return Upload.objects.create(
            user_id=user_id,
            purpose=purpose,
            direct=direct,
            length=length,
            object=new_name(),
            metadata=metadata,
            reservation=reservation,
            expires_at=timezone.now() + kept(),
        )


def kept() -> dt.timedelta:
    return dt.timedelta(hours=settings.STORE["upload_hours"])


def get(user_id: uuid.UUID, upload_id: uuid.UUID) -> Upload:
    """Raises NotStored or UploadExpired."""
    found = Upload.objects.of(user_id).filter(pk=upload_id, direct=False).first()
    if found is None:
        raise NotStored
    if found.expires_at <= timezone.now():
        raise UploadExpired
    return found


def claim(user_id: uuid.UUID, upload_id: uuid.UUID) -> tuple[Upload, Lease[Upload]]:
    found = leases.claim(Upload.objects.of(user_id).filter(pk=upload_id), LEASE)
    if not found:
        if Upload.objects.of(user_id).filter(pk=upload_id).exists():
            raise UploadBusy
        raise NotStored
    return found[0], found[0].lease(LEASE)


# ── Making something of it ──────────────────────────────────────────────────────────────────────────────


def complete(user_id: uuid.UUID, upload_id: uuid.UUID, purpose: str, checksum: bytes) -> Whole:
    """Finish the object, and compare it with the client's checksum. The caller takes it, discards it or lets it be.

    Raises NotStored, UploadExpired, UploadBusy, WrongPurpose, UploadIncomplete, and ChecksumMismatch, after which the
    upload is gone.
    """
    if get(user_id, upload_id).purpose != purpose:
        raise WrongPurpose
    upload, lease = claim(user_id, upload_id)
    try:
        if upload.offset != upload.length:
            raise UploadIncomplete(upload.offset, upload.length)
        if upload.object is None:
            raise UploadExpired
        with store().sink(upload.object, Progress(upload.offset, upload.state)) as sink:
            sink.finish()
        found = bytes(upload.checksum) if upload.checksum is not None else _read_back(upload, lease)
    except ObjectMissing:
        delete_held(lease, upload)
        log.warning("upload.lost", upload_id=str(upload_id))
        raise UploadExpired from None
    except BaseException:
        with contextlib.suppress(LeaseLost):
            lease.release()
        raise
    if found != checksum:
        delete_held(lease, upload)
        raise ChecksumMismatch(checksum.hex(), found.hex())
    return Whole(lease, upload.object, upload.length, found, upload.reservation)


def _read_back(upload: Upload, lease: Lease[Upload]) -> bytes:
    """The checksum of what several requests brought, from what the store has."""
    assert upload.object is not None
    digest, renewed = hashlib.sha256(), time.monotonic()
    for piece in store().read(upload.object, 0, upload.length):
        digest.update(piece)
        if time.monotonic() - renewed > RENEW_S:
            lease.renew()
            renewed = time.monotonic()
    return digest.digest()


def take(whole: Whole, *, instead_of: int = 0) -> None:
    """Count it as stored; in the caller's transaction, whose row refers to the object. Raises UploadExpired."""
    try:
        upload = whole.lease.held()
    except LeaseLost:
        raise UploadExpired from None
    if not limits.amounts().keep(whole.reservation, whole.size, instead_of=instead_of):
        raise UploadExpired
    Upload.objects.filter(pk=upload.pk).update(object=None)  # handed on: nothing is queued when the row goes
    Upload.objects.filter(pk=upload.pk).delete()


def release(whole: Whole) -> None:
    """Nothing was made of it: it can be tried again."""
    try:
        whole.lease.release()
    except LeaseLost:
        _queue_if_gone(whole.lease.pk, whole.object)


def discard(whole: Whole) -> None:
    """It is not needed: the same is there already."""
    upload = whole.lease.row.first()
    if upload is not None:
        with contextlib.suppress(LeaseLost):
            delete_held(whole.lease, upload)


# ── Ending ──────────────────────────────────────────────────────────────────────────────────────────────


def abandon(upload: Upload) -> None:
    """Nothing of it came."""
    with contextlib.suppress(LeaseLost):
        delete_held(upload.lease(LEASE), upload)


def terminate(*, user_id: uuid.UUID, upload_id: uuid.UUID) -> None:
    """Give an upload up. Raises NotStored, UploadExpired or UploadBusy."""
    get(user_id, upload_id)
    upload, lease = claim(user_id, upload_id)
    delete_held(lease, upload)


def delete_held(lease: Lease[Upload], upload: Upload) -> None:
    """Delete the row, whose trigger queues the object. Raises LeaseLost."""
    try:
        with transaction.atomic():
            lease.held()
            limits.amounts().release(upload.reservation)
            Upload.objects.filter(pk=upload.pk).delete()
    except LeaseLost:
        _queue_if_gone(upload.pk, upload.object)
        raise


def _queue_if_gone(upload_id: uuid.UUID, name: str | None) -> None:
    """The row went while its bytes were written, with its account perhaps: they may have come after their deletion."""
    if name is not None and not Upload.objects.filter(pk=upload_id).exists():
        queue([name])


def end_all() -> int:
    """After a database was restored: uploads that it knows are begun anew. Returns how many.

    Their bytes may have become an object that a later dump refers to. So deleting them is left to the comparison of the
    store with the rows, which waits for long.
    """
    return Upload.objects.update(object=None, expires_at=Now())


def expire() -> int:
    """Delete uploads that nobody goes on with. Returns how many."""
    ended = 0
    for upload in leases.claim(Upload.objects.expired().order_by("expires_at"), LEASE, most=_EXPIRED_AT_ONCE):
        with contextlib.suppress(LeaseLost):
            delete_held(upload.lease(LEASE), upload)
            ended += 1
    if ended:
        log.info("upload.expired", count=ended)
    return ended
