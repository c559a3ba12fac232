"""Receipt of the bytes of one request into an upload, under its lease, which is renewed as they come."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog
from django.utils import timezone

from adiuva.core import leases
from adiuva.core.leases import Lease, LeaseLost
from adiuva.object_store.store import ObjectMissing, Progress, Sink, StorageAway, StorageFull, store
from adiuva.vault import uploads
from adiuva.vault.errors import OffsetMismatch, TooLong, TooManyUploads, UploadChecksumMismatch, UploadExpired
from adiuva.vault.models import Upload

if TYPE_CHECKING:
    from hashlib import _Hash

log = structlog.get_logger(__name__)

MOST_AT_ONCE: Final = 4  # requests of one user that bring bytes
_SAVE_BYTES: Final = 16 << 20  # a killed process loses at most this much of what it received
_DIGESTS: Final = ("sha1", "sha256")


@dataclass(frozen=True, slots=True)
class PartChecksum:
    """Hash that the bytes of one request must have."""

    algorithm: str
    digest: bytes

    @classmethod
    def parse(cls, header: str) -> PartChecksum | None:
        """Parse tus' Upload-Checksum; None if it cannot be read."""
        algorithm, _, encoded = header.partition(" ")
        if algorithm not in _DIGESTS:
            return None
        try:
            digest = base64.b64decode(encoded, validate=True)
        except ValueError:
            return None
        return cls(algorithm, digest)


class Receiver:
    """Receiver of the bytes of one request. It blocks; one thread at a time.

    If the request has a checksum, nothing counts before all of it has come.
    """

    def __init__(self, upload: Upload, lease: Lease[Upload], sink: Sink, check: PartChecksum | None) -> None:
        self.upload, self._lease, self._sink, self._check = upload, lease, sink, check
        self.offset = self._saved = upload.offset
        # The hash of the whole, if this request brings all of it, so that nothing has to be read again.
        self._whole: _Hash | None = hashlib.sha256() if upload.offset == 0 else None
        self._part = hashlib.new(check.algorithm, usedforsecurity=False) if check is not None else None
        self._renewed = time.monotonic()

    @property
    def room(self) -> int:
        return self.upload.length - self.offset

    def write(self, data: bytes) -> None:
        """Write bytes. Raises StorageFull, StorageAway, TooLong, UploadExpired if the store lost earlier bytes, or
        LeaseLost if another took the upload, or its account is gone."""
        if len(data) > self.room:
            raise TooLong(self.upload.length - self.upload.offset)
        try:
            self._sink.write(data)
        except ObjectMissing:
            raise UploadExpired from None
        self.offset += len(data)
        for digest in (self._whole, self._part):
            if digest is not None:
                digest.update(data)
        late = time.monotonic() - self._renewed > uploads.RENEW_S
        if self._may_save and self.offset - self._saved >= _SAVE_BYTES:
            self._renew(self._sink.checkpoint())
        elif late:
            self._renew(None)

    @property
    def _may_save(self) -> bool:
        return self._check is None and not self.upload.direct

    def _renew(self, progress: Progress | None) -> None:
        changes = _columns(progress) if progress is not None else {}
        self._lease.renew(**changes)
        self._renewed = time.monotonic()
        if progress is not None:
            self._saved = progress.offset

    def end(self) -> int:
        """End the body, whole or broken off: keep its bytes, and release the lease. Returns the offset that counts.

        Raises UploadChecksumMismatch: then nothing of this request counts.
        """
        wrong = (
            self._part is not None and self._check is not None and self._part.digest() != self._check.digest
        )
        if wrong:
            self._lease.release()
            raise UploadChecksumMismatch
        progress = self._sink.save()
        changes = _columns(progress)
        if self._whole is not None and progress.offset == self.upload.length:
            changes["checksum"] = self._whole.digest()
        self._lease.release(**changes, expires_at=self._expiry())
        return progress.offset

    def save_rest(self) -> None:
        """Keep as much as possible of a body that broke off, and release the lease. Raises nothing, because nobody
        waits for the answer."""
        try:
            if self._may_save:
                self.end()
            else:
                self.give_up()
        except (LeaseLost, StorageAway, StorageFull, ObjectMissing):
            self.give_up()

    def _expiry(self) -> dt.datetime:
        return min(timezone.now() + uploads.kept(), self.upload.created_at + uploads.LONGEST)

    def finish(self) -> uploads.Whole:
        """Finish a direct upload once all of it came: the object is whole, and still under the lease."""
        self._sink.finish()
        assert self._whole is not None and self.upload.object is not None
        return uploads.Whole(
            self._lease, self.upload.object, self.offset, self._whole.digest(), self.upload.reservation
        )

    def give_up(self) -> None:
        """Give up a failed request. A resumable upload keeps its safe bytes; a direct one is deleted, and its room
        freed."""
        with contextlib.suppress(LeaseLost):
            if self.upload.direct:
                uploads.delete_held(self._lease, self.upload)
            else:
                self._lease.release()

    def close(self) -> None:
        """Free the receiver's resources; call it after `end`, `finish` or `give_up`."""
        self._sink.close()


def _columns(progress: Progress) -> dict[str, Any]:
    return {"offset": progress.offset, "state": progress.state}


def open_receiver(
    user_id: uuid.UUID,
    upload_id: uuid.UUID,
    *,
    offset: int,
    check: PartChecksum | None = None,
    direct: bool = False,
) -> Receiver:
    """Hold the upload while a request brings bytes from `offset` on. The caller calls `end` or `give_up`, and then
    `close`.

    Raises NotStored, UploadExpired, UploadBusy, OffsetMismatch, TooManyUploads.
    """
    if not direct:
        uploads.get(user_id, upload_id)
    busy = Upload.objects.of(user_id).filter(leases.is_held()).exclude(pk=upload_id).count()
    if busy >= MOST_AT_ONCE:
        raise TooManyUploads(MOST_AT_ONCE)
    upload, lease = uploads.claim(user_id, upload_id)
    try:
        if upload.offset != offset:
            raise OffsetMismatch(upload.offset)
        if upload.object is None:
            raise UploadExpired
        sink = store().sink(upload.object, Progress(upload.offset, upload.state))
    except ObjectMissing:
        uploads.delete_held(lease, upload)
        log.warning("upload.lost", upload_id=str(upload_id))
        raise UploadExpired from None
    except BaseException:
        lease.release()
        raise
    return Receiver(upload, lease, sink, check)
