"""Uploads that can be resumed, by tus 1.0."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse
from rest_framework.views import APIView

from adiuva.core.rest import error_responses, user_id
from adiuva.object_store.views import StreamedBodies
from adiuva.vault import bodies, headers, uploads
from adiuva.vault.models import Upload
from adiuva.vault.views.bytes_view import EMPTY, header

_TUS = header("Tus-Resumable", "1.0.0", required=True)
_TUS_ANSWER = {"Tus-Resumable": headers.TUS, "Cache-Control": "no-store"}
_TUS_OPTIONS = {
    **_TUS_ANSWER,
    "Tus-Version": headers.TUS,
    "Tus-Extension": "creation,expiration,checksum,termination",
    "Tus-Max-Size": str(uploads.MOST_BYTES),
    "Tus-Checksum-Algorithm": "sha1,sha256",
}


def _state_headers(upload: Upload) -> dict[str, str]:
    expires = upload.expires_at.astimezone(dt.UTC)
    return {
        **_TUS_ANSWER,
        "Upload-Offset": str(upload.offset),
        "Upload-Length": str(upload.length),
        "Upload-Expires": f"{expires:%a, %d %b %Y %H:%M:%S} GMT",
        **({"Upload-Metadata": upload.metadata} if upload.metadata else {}),
    }


class UploadsView(APIView):
    """Uploads that can be resumed, by tus 1.0."""

    @extend_schema(exclude=True)
    def options(self, request: Any, *args: Any, **kwargs: Any) -> Response:
        return Response(status=204, headers=_TUS_OPTIONS)

    @extend_schema(
        summary="Begin an upload",
        operation_id="storage_uploads_create",
        request=None,
        parameters=[
            _TUS,
            header("Upload-Length", "Bytes of the whole; room is kept for them.", int, required=True),
            header("Upload-Metadata", "tus' pairs. `purpose`: storage (without it) or backup, in base64."),
        ],
        responses={201: EMPTY, **error_responses(400, 401, 402, 403, 411, 412, 413, 429, 507)},
    )
    def post(self, request: Request) -> Response:
        """`Location` names the upload. It lasts a day from the last bytes."""
        headers.require_tus(request.headers)
        length = headers.upload_length(request.headers)
        purpose, metadata = headers.upload_purpose(request.headers)
        made = uploads.begin(user_id=user_id(request), purpose=purpose, length=length, metadata=metadata)
        place = reverse("storage-upload", kwargs={"upload_id": made.pk}, request=request)
        return Response(status=201, headers={**_state_headers(made), "Location": place})


class UploadView(StreamedBodies):
    """One upload, by tus 1.0."""

    body_streams = {"PATCH": bodies.part}

    @extend_schema(exclude=True)
    def options(self, request: Any, *args: Any, **kwargs: Any) -> Response:
        return Response(status=204, headers=_TUS_OPTIONS)

    @extend_schema(
        summary="How far an upload is",
        operation_id="storage_uploads_head",
        parameters=[_TUS],
        responses={200: EMPTY, **error_responses(401, 404, 410, 412)},
    )
    def head(self, request: Request, upload_id: UUID) -> Response:
        found = uploads.get(user_id(request), upload_id)
        headers.require_tus(request.headers)
        return Response(headers=_state_headers(found))

    @extend_schema(
        summary="Send bytes of an upload",
        operation_id="storage_uploads_append",
        parameters=[
            _TUS,
            header("Upload-Offset", "Where these bytes belong.", int, required=True),
            header("Upload-Checksum", "sha1 or sha256 of these bytes, in base64: 460 if it is not theirs."),
        ],
        request={"application/offset+octet-stream": OpenApiTypes.BINARY},
        responses={
            204: EMPTY,
            **error_responses(400, 401, 404, 408, 409, 410, 412, 413, 423, 429, 503, 507),
        },
    )
    def patch(self, request: Request, upload_id: UUID) -> Response:
        """Append bytes. If the request breaks off, HEAD says how much is kept."""
        return self.take_body(request, upload_id=upload_id)

    @extend_schema(
        summary="Give up an upload",
        operation_id="storage_uploads_destroy",
        parameters=[_TUS],
        responses={204: EMPTY, **error_responses(401, 404, 410, 412, 423)},
    )
    def delete(self, request: Request, upload_id: UUID) -> Response:
        uploads.get(user_id(request), upload_id)
        headers.require_tus(request.headers)
        uploads.terminate(user_id=user_id(request), upload_id=upload_id)
        return Response(status=204, headers=_TUS_ANSWER)
