"""Building an export archive: rows of all apps, zipped as they are read, sealed in chunks, never whole in memory.

It is no snapshot: it may or may not contain what is written meanwhile.
"""

from __future__ import annotations

import datetime as dt
import time
import uuid
from typing import Final

import structlog
from django.db import DatabaseError, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from adiuva import __version__
from adiuva.accounts.keys import cipher_for
from adiuva.core import export_archive as archives
from adiuva.core import leases
from adiuva.core.errors import Unavailable
from adiuva.core.leases import Lease, LeaseLost
from adiuva.core.logging import log_failure
from adiuva.export.models import Export, ExportChunk
from adiuva.export.services import ARCHIVE_KEPT, State

_LEASE: Final = dt.timedelta(minutes=2)
_RENEW_S: Final = 15.0
_CHUNK_BYTES: Final = 1024 * 1024 - 64  # sealed, a chunk stays below 1 MiB

log = structlog.get_logger(__name__)

_README = """\
This is what Adiuva's server held of your account {user} on {day}.

Each file has one JSON object a line. Times are ISO 8601 in UTC. What was kept sealed is here in clear: keep it safe.

{files}

Not here: your password and tokens, of which no text is kept; the keyed hashes by which things are found again, such as
those of the files that agents have read; and your own data, which is on your devices.

Made by Adiuva {version}.
"""


def build_export(export_id: uuid.UUID) -> None:
    """Build an export unless another worker does. The sweep queues the exports of dead workers again."""
    export = _claim(export_id)
    if export is None:
        return
    lease = export.lease(_LEASE)
    try:
        _build(export, lease)
    except LeaseLost:
        log.info("export.lease_lost", export_id=str(export_id))
    except (DatabaseError, Unavailable) as error:
        log.warning("export.interrupted", export_id=str(export_id), error=type(error).__name__)
    except Exception as error:
        log_failure("export.failed", error, export_id=str(export_id))
        _fail(lease)


@transaction.atomic
def _claim(export_id: uuid.UUID) -> Export | None:
    queued = Export.objects.filter(pk=export_id, state=State.QUEUED)
    found = leases.claim(queued, _LEASE, state=State.RUNNING, attempt=F("attempt") + 1)
    if not found:
        return None
    ExportChunk.objects.filter(export_id=export_id).delete()
    return found[0]


def _build(export: Export, lease: Lease[Export]) -> None:
    pending, number, size, renewed_at = bytearray(), 0, 0, time.monotonic()
    for piece in archives.zip_pieces(archives.registered_parts(), export.user_id, readme=_readme(export)):
        pending += piece
        while len(pending) >= _CHUNK_BYTES:
            _save_chunk(export, lease, number, bytes(pending[:_CHUNK_BYTES]))
            number, size, renewed_at = number + 1, size + _CHUNK_BYTES, time.monotonic()
            del pending[:_CHUNK_BYTES]
        if time.monotonic() - renewed_at > _RENEW_S:
            lease.renew()
            renewed_at = time.monotonic()
    _save_chunk(export, lease, number, bytes(pending))
    size += len(pending)
    lease.release(
        state=State.READY, ended_at=Now(), size=size, chunks=number + 1, expires_at=Now() + ARCHIVE_KEPT
    )
    log.info("export.built", export_id=str(export.pk), user_id=str(export.user_id), size=size)


def _readme(export: Export) -> str:
    parts = archives.registered_parts()
    width = max(len(part.name) for part in parts)
    files = "\n".join(f"{part.name:<{width}}  {part.about}" for part in parts)
    day = f"{timezone.now():%Y-%m-%d %H:%M} UTC"
    return _README.format(user=export.user_id, day=day, files=files, version=__version__)


@transaction.atomic
def _save_chunk(export: Export, lease: Lease[Export], number: int, plain: bytes) -> None:
    lease.renew()
    chunk = ExportChunk(export=export, number=number)
    ExportChunk.sealed.seal_into(cipher_for(export.user_id), chunk, plain)
    chunk.save(force_insert=True)


@transaction.atomic
def _fail(lease: Lease[Export]) -> None:
    try:
        lease.release(state=State.FAILED, ended_at=Now(), code="internal")
    except LeaseLost:
        return
    ExportChunk.objects.filter(export_id=lease.pk).delete()
