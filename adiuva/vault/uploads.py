"""Uploads: begun with their length, for which room is kept; brought in one request or more; then turned into something.

    upload = begin(user_id=..., purpose=..., length=...)
    receiver = open_receiver(user_id, upload.pk, offset=0)       # receiving.py: the lease is held
    receiver.write(data)
    receiver.end()                                               # or give_up(); then close()
    whole = complete(user_id, upload.pk, purpose, checksum)      # the object is whole, and has this checksum
    with transaction.atomic():
        take(whole)                                              # counted; the caller's row refers to the object now

A request that breaks off leaves its safe bytes. An upload that nobody continues expires, and its room is freed.
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
    """Complete upload with a correct checksum, under the lease of the request that makes something of it."""

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

    Raises TooLong, TooManyUploads, StorageFull, or the errors of limits.
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
    """Return an upload. Raises NotStored or UploadExpired."""
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
    """Finish the object, and compare it with the client's checksum. The caller takes, discards or releases the upload.

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
    """Return the checksum of an upload that came in several requests: reads it back from the store."""
    assert upload.object is not None
    digest, renewed = hashlib.sha256(), time.monotonic()
    for piece in store().read(upload.object, 0, upload.length):
        digest.update(piece)
        if time.monotonic() - renewed > RENEW_S:
            lease.renew()
            renewed = time.monotonic()
    return digest.digest()


def take(whole: Whole, *, instead_of: int = 0) -> None:
    """Count the upload as stored, in the caller's transaction; its row refers to the object. Raises UploadExpired."""
    try:
        upload = whole.lease.held()
    except LeaseLost:
        raise UploadExpired from None
    if not limits.amounts().keep(whole.reservation, whole.size, instead_of=instead_of):
        raise UploadExpired
    # The object is handed on, so that nothing is queued when the row goes.
    Upload.objects.filter(pk=upload.pk).update(object=None)
    Upload.objects.filter(pk=upload.pk).delete()


def release(whole: Whole) -> None:
    """Release an upload that nothing was made of, so that it can be tried again."""
    try:
        whole.lease.release()
    except LeaseLost:
        _queue_if_gone(whole.lease.pk, whole.object)


def discard(whole: Whole) -> None:
    """Discard an upload that is not needed, because the same bytes are there already."""
    upload = whole.lease.row.first()
    if upload is not None:
        with contextlib.suppress(LeaseLost):
            delete_held(whole.lease, upload)


# ── Ending ──────────────────────────────────────────────────────────────────────────────────────────────


def abandon(upload: Upload) -> None:
    """Abandon an upload that got no byte."""
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
    """Queue the object if the row was deleted while its bytes were written, perhaps with its account: they may have
    come after their deletion."""
    if name is not None and not Upload.objects.filter(pk=upload_id).exists():
        queue([name])


def end_all() -> int:
    """Begin the known uploads anew, after a database was restored. Returns how many.

    Their bytes may have become an object that a later dump refers to. So the comparison of the store with the rows,
    which waits long, deletes them.
    """
    return Upload.objects.update(object=None, expires_at=Now())


def expire() -> int:
    """Delete uploads that nobody continues. Returns how many."""
    ended = 0
    for upload in leases.claim(Upload.objects.expired().order_by("expires_at"), LEASE, most=_EXPIRED_AT_ONCE):
        with contextlib.suppress(LeaseLost):
            delete_held(upload.lease(LEASE), upload)
            ended += 1
    if ended:
        log.info("upload.expired", count=ended)
    return ended
