"""Operations on exports: request, download, cancel and sweep. build.py makes the archive itself."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator
from typing import Final

from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.accounts.keys import NoSuchUser, cipher_for
from adiuva.accounts.models import User
from adiuva.core import db, leases
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.errors import AdiuvaError, Conflict, NotFound, Text
from adiuva.core.pruning import delete_in_batches
from adiuva.export.models import Export, ExportChunk

State = Export.State
# Counted from when it is ready, fetched or not: the owner may fetch it again, or delete it earlier.
ARCHIVE_KEPT: Final = dt.timedelta(hours=24)
MAX_PER_DAY: Final = 5
MAX_ATTEMPTS: Final = 3
_NUDGE_AGAIN: Final = dt.timedelta(seconds=60)
_ROWS_KEPT: Final = dt.timedelta(days=30)
_AT_ONCE: Final = 50  # rows of a kind in one sweep; the next one continues


class ExportNotFound(NotFound):
    code = "export_not_found"

    def __init__(self) -> None:
        super().__init__("there is no such export, or it is not yours")


class ExportInProgress(Conflict):
    """Error for an account with an export in progress; `export_id` in the answer names it."""

    code = "export_is_live"

    def __init__(self, export_id: uuid.UUID) -> None:
        super().__init__("an export of this account is under way", export_id=str(export_id))


class TooManyExports(AdiuvaError):
    code, status = "too_many_exports", 429

    def __init__(self, seconds: int) -> None:
        super().__init__(
            Text("an account is exported at most {most} times a day", most=MAX_PER_DAY), retry_after_s=seconds
        )


class ExportNotReady(Conflict):
    code = "export_not_ready"

    def __init__(self, state: str) -> None:
        super().__init__("there is no archive to fetch yet" if state in Export.LIVE else "the export failed")
        self.extra["state"] = state


class ExportExpired(AdiuvaError):
    code, status = "export_expired", 410

    def __init__(self) -> None:
        super().__init__("this archive was deleted: ask for a new one")


# ── For its owner ───────────────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def request_export(*, user_id: uuid.UUID) -> Export:
    """Queue a new export and delete the previous archive. Raises ExportInProgress, TooManyExports or NoSuchUser."""
    if User.objects.select_for_update(no_key=True).filter(pk=user_id).only("pk").first() is None:
        raise NoSuchUser("this account no longer exists")
    mine = Export.objects.of(user_id)
    if (live := mine.live().values_list("pk", flat=True).first()) is not None:
        raise ExportInProgress(live)
    day = timezone.now() - dt.timedelta(days=1)
    lately = list(
        mine.filter(created_at__gt=day).order_by("-created_at").values_list("created_at", flat=True)
    )
    if len(lately) >= MAX_PER_DAY:
        raise TooManyExports(max(1, int((lately[MAX_PER_DAY - 1] - day).total_seconds())))
    _expire(list(mine.ready().values_list("pk", flat=True)))
    export = Export.objects.create(user_id=user_id)
    enqueue_on_commit("export.make", export.pk)
    export.refresh_from_db()
    return export


def get_export(user_id: uuid.UUID, export_id: uuid.UUID) -> Export:
    """Return one of the user's exports. Raises ExportNotFound, also for another user's export."""
    found = Export.objects.of(user_id).filter(pk=export_id).first()
    if found is None:
        raise ExportNotFound
    return found


def require_ready(export: Export) -> Export:
    """Raise ExportNotReady or ExportExpired if there is no archive."""
    if is_expired(export):
        raise ExportExpired
    if export.state != State.READY:
        raise ExportNotReady(export.state)
    return export


def is_expired(export: Export) -> bool:
    """Return whether its archive is gone, or goes with the next sweep."""
    late = export.expires_at is not None and export.expires_at <= timezone.now()
    return export.state == State.EXPIRED or (export.state == State.READY and late)


async def stream_archive(export: Export) -> AsyncIterator[bytes]:
    """Yield the archive chunk by chunk.

    Raises ExportExpired if it is deleted meanwhile, SealBroken if it was altered.
    """
    for number in range(export.chunks):
        yield await db.run(_chunk, export, number)


def _chunk(export: Export, number: int) -> bytes:
    chunk = ExportChunk.objects.filter(export_id=export.pk, number=number).first()
    if chunk is None:
        raise ExportExpired
    return ExportChunk.sealed.unseal_from(cipher_for(export.user_id), chunk)


@transaction.atomic
def delete_archive(*, export: Export) -> None:
    """Delete the archive, or stop making it. The row that says that it was requested stays."""
    locked = Export.objects.select_for_update().filter(pk=export.pk).first()
    if locked is not None and locked.state != State.FAILED:
        _expire([locked.pk])


def _expire(ids: list[uuid.UUID]) -> None:
    ExportChunk.objects.filter(export_id__in=ids).delete()
    leases.revoke(Export.objects.filter(pk__in=ids), state=State.EXPIRED)


# ── The sweep ───────────────────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def sweep_exports() -> dict[str, int]:
    """Resume exports of lost hints or dead workers, and delete those kept long enough. Safe at any time."""
    rows = Export.objects.select_for_update(skip_locked=True)
    lost = leases.reclaim(Export.objects.filter(state=State.RUNNING), most=_AT_ONCE)
    failed = [row.pk for row in lost if row.attempt >= MAX_ATTEMPTS]
    again = [row.pk for row in lost if row.attempt < MAX_ATTEMPTS]
    forgotten = rows.filter(state=State.QUEUED, nudged_at__lt=Now() - _NUDGE_AGAIN)
    again += forgotten.values_list("pk", flat=True)[:_AT_ONCE]
    ExportChunk.objects.filter(export_id__in=[row.pk for row in lost]).delete()
    Export.objects.filter(pk__in=failed).update(state=State.FAILED, code="workers_lost", ended_at=Now())
    Export.objects.filter(pk__in=again).update(state=State.QUEUED, nudged_at=Now())
    for export_id in again:
        enqueue_on_commit("export.make", export_id)
    late = list(rows.ready().filter(expires_at__lt=Now()).values_list("pk", flat=True)[:_AT_ONCE])
    _expire(late)
    old = Export.objects.filter(created_at__lt=Now() - _ROWS_KEPT).exclude(state__in=Export.LIVE)
    delete_in_batches(old.order_by("created_at"))
    return {"lost": len(failed), "nudged": len(again), "expired": len(late)}
