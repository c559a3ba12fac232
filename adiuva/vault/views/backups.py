"""Backups over REST: stored, read, listed, deleted."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from adiuva.core.paging import TOTAL_COUNT
from adiuva.core.rest import Done, error_responses, user_id
from adiuva.object_store.views import StreamedBodies
from adiuva.vault import backups, bodies, downloads, headers, uploads
from adiuva.vault.errors import NotStored
from adiuva.vault.models import Backup
from adiuva.vault.serializers import BackupSerializer
from adiuva.vault.views.bytes_view import BYTES, CONDITIONS, BytesView, header


def _backup_bytes(request: Request, found: Backup) -> HttpResponseBase:
    # Rows may have later times than are taken now: of a clock in microseconds, for example.
    made_at = dt.datetime.fromtimestamp(min(found.timestamp_ms, backups.MAX_MS) // 1000, dt.UTC)
    more = {
        "X-Backup-Id": str(found.pk),
        "X-Backup-Version": str(found.version),
        "X-Backup-Timestamp": str(found.timestamp_ms),
        "X-Backup-Checksum": bytes(found.checksum).hex(),
        **({"X-Backup-Base": str(found.base_ms)} if found.base_ms is not None else {}),
    }
    return downloads.respond(request._request, found, changed_at=made_at, headers=more)


class BackupView(StreamedBodies):
    """The newest backup."""

    body_streams = {"PUT": bodies.backup}

    @extend_schema(
        summary="The bytes of the newest backup",
        operation_id="backup_retrieve",
        parameters=CONDITIONS,
        responses={**BYTES, **error_responses(401, 404, 409, 412, 416, 503)},
    )
    def get(self, request: Request) -> HttpResponseBase:
        """Return the newest backup with the headers of its upload."""
        return _backup_bytes(request, backups.latest(user_id(request)))

    @extend_schema(
        summary="Store a backup",
        operation_id="backup_update",
        parameters=[
            header("X-Backup-Version", "The version of the client's format.", int, required=True),
            header("X-Backup-Timestamp", "The time when it was made, in ms since 1970.", int, required=True),
            header("X-Backup-Checksum", "SHA-256 in hexadecimal digits.", required=True),
            header("X-Backup-Chunks", "The number of its chunks, for the history.", int),
            header(
                "X-Backup-Base", "The time of the backup that it builds on: kept as long as this one.", int
            ),
            header("X-Upload-Id", "A complete upload, in place of a body.", UUID),
        ],
        request={"application/octet-stream": OpenApiTypes.BINARY},
        responses={
            200: Done,
            **error_responses(400, 401, 402, 403, 404, 408, 409, 410, 411, 413, 423, 429, 503, 507),
        },
    )
    def put(self, request: Request) -> Response:
        """Store a backup. The same backup again makes no second one. Other bytes of the same time are refused (409),
        and so is a base that is not there (`base_missing`)."""
        if "X-Upload-Id" not in request.headers:
            return self.take_body(request)
        user, described = user_id(request), headers.backup(request.headers)
        try:
            upload = UUID(request.headers["X-Upload-Id"])
        except ValueError:
            raise NotStored from None
        if backups.is_there(user, described):
            return Response({"ok": True})
        whole = uploads.complete(user, upload, "backup", described.checksum)
        try:
            backups.store(user, described, whole)
        except BaseException:
            uploads.release(whole)
            raise
        return Response({"ok": True})


class BackupHistoryView(ListAPIView[Backup]):
    """Your backups."""

    page_row_delete = "backup-one"
    serializer_class = BackupSerializer
    queryset = Backup.objects.none()

    def get_queryset(self) -> Any:
        return Backup.objects.of(user_id(self.request)).newest_first()

    @extend_schema(
        summary="Your backups, the newest first",
        operation_id="backup_history",
        parameters=[TOTAL_COUNT],
        responses={200: BackupSerializer(many=True), **error_responses(400, 401)},
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self.list(request, *args, **kwargs)


class OneBackupView(BytesView):
    """One backup."""

    @extend_schema(
        summary="The bytes of a backup",
        operation_id="backup_one_retrieve",
        parameters=CONDITIONS,
        responses={**BYTES, **error_responses(401, 404, 409, 412, 416, 503)},
    )
    def get(self, request: Request, backup_id: UUID) -> HttpResponseBase:
        return _backup_bytes(request, backups.get(user_id(request), backup_id))

    @extend_schema(
        summary="Delete a backup",
        operation_id="backup_destroy",
        responses={200: Done, **error_responses(401, 404, 409)},
    )
    def delete(self, request: Request, backup_id: UUID) -> Response:
        """Delete a backup. One that others build on can be deleted only after them (409)."""
        backups.delete(user_id=user_id(request), backup_id=backup_id)
        return Response({"ok": True})
