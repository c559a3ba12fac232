"""Making an archive: every room's rows, zipped as they are read, sealed a chunk at a time. It is never whole in memory.

It is no snapshot: what is said while it is made may be in it or not.
"""

from __future__ import annotations

import datetime as dt
import time
import uuid
from typing import Final

import structlog
from django.db import DatabaseError, models, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from adiuva import __version__
from adiuva.accounts import export as accounts
from adiuva.accounts.keys import cipher_for
from adiuva.core import archive as archives
from adiuva.core.errors import Unavailable
from adiuva.devices import export as devices
from adiuva.export.models import Export, ExportChunk
from adiuva.export.services import KEPT, State, place_of
from agents import export as agents
from chat import export as chat
from integrations import export as integrations
from memory import export as memory

PARTS: Final = (
    *accounts.PARTS,
    *devices.PARTS,
    *integrations.PARTS,
    *agents.PARTS,
    *chat.PARTS,
    *memory.PARTS,
)
_LEASE: Final = dt.timedelta(minutes=2)
_RENEW_S: Final = 15.0
_CHUNK: Final = 1024 * 1024 - 64  # bytes; with its seal it stays below 1 MiB

log = structlog.get_logger("adiuva.export")

_README = """\
This is what Adiuva's server held of your account {user} on {day}.

Each file has one JSON object a line. Times are ISO 8601 in UTC. What was kept sealed is here in clear: keep it safe.

{files}

Not here: your password and tokens, of which no text is kept; the keyed hashes by which things are found again, such as
those of the files that agents have read; and your own data, which is on your devices.

Made by Adiuva {version}.
"""


class _Lost(Exception):
    """Another worker has it, or it was given up."""


def make(export_id: uuid.UUID) -> None:
    """Make an export, if nobody else does. What a dead worker or a database that was away leaves, the sweep finds."""
    export = _claim(export_id)
    if export is None:
        return
    try:
        _write(export)
    except _Lost:
        log.info("export.lost", export_id=str(export_id))
    except (DatabaseError, Unavailable) as error:
        log.warning("export.waits", export_id=str(export_id), error=type(error).__name__)
    except Exception as error:
        # Its text may hold what a row says.
        log.error("export.failed", export_id=str(export_id), error=type(error).__name__)
        if _end(export, State.FAILED, code="internal"):
            ExportChunk.objects.filter(export=export).delete()


@transaction.atomic
def _claim(export_id: uuid.UUID) -> Export | None:
    mine = Export.objects.filter(pk=export_id, state=State.QUEUED)
    if not mine.update(state=State.RUNNING, attempt=F("attempt") + 1, lease_until=Now() + _LEASE):
        return None
    ExportChunk.objects.filter(export_id=export_id).delete()
    return Export.objects.get(pk=export_id)


def _write(export: Export) -> None:
    waiting, number, size, renewed = bytearray(), 0, 0, time.monotonic()
    for piece in archives.pieces(PARTS, export.user_id, readme=_readme(export)):
        waiting += piece
        while len(waiting) >= _CHUNK:
            _keep(export, number, bytes(waiting[:_CHUNK]))
            number, size, renewed = number + 1, size + _CHUNK, time.monotonic()
            del waiting[:_CHUNK]
        if time.monotonic() - renewed > _RENEW_S:
            _renew(export)
            renewed = time.monotonic()
    _keep(export, number, bytes(waiting))
    size += len(waiting)
    if not _end(export, State.READY, size=size, chunks=number + 1, expires_at=Now() + KEPT):
        raise _Lost
    log.info("export.ready", export_id=str(export.pk), user_id=str(export.user_id), size=size)


def _readme(export: Export) -> str:
    width = max(len(part.name) for part in PARTS)
    files = "\n".join(f"{part.name:<{width}}  {part.about}" for part in PARTS)
    day = f"{timezone.now():%Y-%m-%d %H:%M} UTC"
    return _README.format(user=export.user_id, day=day, files=files, version=__version__)


@transaction.atomic
def _keep(export: Export, number: int, plain: bytes) -> None:
    _renew(export)
    cipher = cipher_for(export.user_id)
    sealed = cipher.cipher.seal(plain, place_of(cipher, export.pk, number))
    ExportChunk.objects.create(export=export, number=number, sealed=sealed)


def _renew(export: Export) -> None:
    if not _mine(export).update(lease_until=Now() + _LEASE):
        raise _Lost


def _end(export: Export, state: Export.State, **values: object) -> bool:
    return bool(_mine(export).update(state=state, lease_until=None, ended_at=Now(), **values))


def _mine(export: Export) -> models.QuerySet[Export]:
    return Export.objects.filter(pk=export.pk, state=State.RUNNING, attempt=export.attempt)
