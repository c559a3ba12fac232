"""Records over REST: stored, read, replaced, deleted, listed; and what has changed."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.http.response import HttpResponseBase
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse
from rest_framework.views import APIView

from adiuva.core.errors import Invalid
from adiuva.core.paging import TOTAL_COUNT
from adiuva.core.rest import Done, error_responses, user_id
from adiuva.vault import changes, checksums, downloads, headers, records, uploads
from adiuva.vault.models import Record
from adiuva.vault.records import Content
from adiuva.vault.serializers import (
    ChangedRecordSerializer,
    ChangesQuerySerializer,
    ChangesSerializer,
    CreatedSerializer,
    NewRecordSerializer,
    RecordSerializer,
    StoredSerializer,
)
from adiuva.vault.uploads import Whole
from adiuva.vault.views.bytes_view import BYTES, CONDITIONS, BytesView, header

_IF_MATCH = header("If-Match", 'The checksum of what is there, in quotes; or "*".')
_IF_NONE_MATCH = header("If-None-Match", "`*`: only if there is none yet.")


def _content(user: UUID, given: dict[str, Any]) -> Content:
    if "blob" in given:
        return records.inline(given["blob"], given["checksum"])
    return uploads.complete(user, given["upload"], "storage", given["checksum"])


class RecordsView(ListAPIView[Record]):
    """Opaque records, which the server cannot read."""

    page_row_detail = "storage-record"
    serializer_class = RecordSerializer
    queryset = Record.objects.none()

    def get_queryset(self) -> Any:
        rows = Record.objects.of(user_id(self.request)).live().without_bytes().order_by("number")
        table = self.request.query_params.get("table", "")
        return rows.filter(table=table) if table else rows

    @extend_schema(
        summary="Your records, oldest first",
        operation_id="storage_records_list",
        parameters=[TOTAL_COUNT, OpenApiParameter("table", str, description="Only those of this table.")],
        responses={200: RecordSerializer(many=True), **error_responses(400, 401)},
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """List a page of records. A record that a page does not name is not deleted: `/storage/changes` says what
        is."""
        return self.list(request, *args, **kwargs)

    @extend_schema(
        summary="Store a record",
        operation_id="storage_records_create",
        request=NewRecordSerializer,
        responses={
            200: OpenApiResponse(CreatedSerializer, "The same was there already, under the same id."),
            201: CreatedSerializer,
            **error_responses(400, 401, 402, 403, 404, 409, 410, 423, 503, 507),
        },
    )
    def post(self, request: Request) -> Response:
        given = NewRecordSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        user, data = user_id(request), given.validated_data
        content = _content(user, data)
        try:
            made, is_new = records.create(
                user_id=user, table=data["table"], content=content, record_id=data.get("id")
            )
        except BaseException:
            _let_be(content)
            raise
        body = dict(CreatedSerializer(made).data)
        place = reverse("storage-record", kwargs={"record_id": made.id}, request=request)
        answer = {"ETag": checksums.etag(made.checksum), "Location": place}
        return Response(body, status=201 if is_new else 200, headers=answer)


def _let_be(content: Content) -> None:
    """Release an upload that nothing was made of, so that another request can use it."""
    if isinstance(content, Whole):
        uploads.release(content)


class RecordView(BytesView):
    """One record."""

    @extend_schema(
        summary="The bytes of a record",
        operation_id="storage_records_retrieve",
        parameters=CONDITIONS,
        responses={**BYTES, **error_responses(401, 404, 409, 412, 416, 503)},
    )
    def get(self, request: Request, record_id: UUID) -> HttpResponseBase:
        """Return the bytes, with their checksum in `X-Checksum` and, in quotes, `ETag`."""
        found = records.get(user_id(request), record_id)
        more = {"X-Version": str(found.version)}
        return downloads.respond(request._request, found, changed_at=found.updated_at, headers=more)

    @extend_schema(
        summary="Replace the bytes of a record",
        operation_id="storage_records_update",
        parameters=[_IF_MATCH, _IF_NONE_MATCH],
        request=ChangedRecordSerializer,
        responses={
            200: StoredSerializer,
            201: OpenApiResponse(StoredSerializer, "It was made."),
            **error_responses(400, 401, 402, 403, 404, 409, 410, 412, 423, 503, 507),
        },
    )
    def put(self, request: Request, record_id: UUID) -> Response:
        """Replace a record. With `If-Match`, only if it is still the named one: 412 `changed_meanwhile` says what is
        there. Equal bytes are never a conflict."""
        given = ChangedRecordSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        user, data, when = user_id(request), given.validated_data, headers.precondition(request.headers)
        if when.is_absent and "table" not in data:
            raise Invalid("a new record has a table", fields={"table": ["It is required."]})
        content = _content(user, data)
        try:
            stored, is_new = records.put(
                user_id=user, record_id=record_id, table=data.get("table"), content=content, when=when
            )
        except BaseException:
            _let_be(content)
            raise
        body = {"ok": True, "checksum": bytes(stored.checksum).hex(), "version": stored.version}
        return Response(
            body, status=201 if is_new else 200, headers={"ETag": checksums.etag(stored.checksum)}
        )

    @extend_schema(
        summary="Delete a record",
        operation_id="storage_records_destroy",
        parameters=[_IF_MATCH],
        responses={200: Done, **error_responses(400, 401, 404, 412)},
    )
    def delete(self, request: Request, record_id: UUID) -> Response:
        """Delete a record. For 7 days it can be brought back. Its room is free at once."""
        records.delete(
            user_id=user_id(request), record_id=record_id, when=headers.precondition(request.headers)
        )
        return Response({"ok": True})


class UndeleteView(APIView):
    """What was deleted by mistake."""

    @extend_schema(
        summary="Bring back a record that was deleted in the last 7 days",
        operation_id="storage_records_undelete",
        request=None,
        responses={200: StoredSerializer, **error_responses(401, 402, 403, 404)},
    )
    def post(self, request: Request, record_id: UUID) -> Response:
        found = records.undelete(user_id=user_id(request), record_id=record_id)
        body = {"ok": True, "checksum": bytes(found.checksum).hex(), "version": found.version}
        return Response(body, headers={"ETag": checksums.etag(found.checksum)})


class ChangesView(APIView):
    """What other devices changed."""

    @extend_schema(
        summary="What has changed since a cursor",
        operation_id="storage_changes",
        parameters=[ChangesQuerySerializer],
        responses={200: ChangesSerializer, **error_responses(400, 401, 410)},
    )
    def get(self, request: Request) -> Response:
        """List the changes. Nothing is skipped, whoever writes at the same time. Deleted records are in it as
        tombstones."""
        given = ChangesQuerySerializer(data=request.query_params)
        given.is_valid(raise_exception=True)
        found = changes.since(user_id(request), given.validated_data["since"], given.validated_data["limit"])
        shown = {"changes": found.records, "cursor": found.cursor, "complete": found.complete}
        return Response(ChangesSerializer({**shown, "more": not found.complete}).data)
