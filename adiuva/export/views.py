"""The archive of an account over REST. Every query starts from the request's user."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse
from rest_framework.views import APIView

from adiuva.accounts.serializers import ConfirmationSerializer
from adiuva.accounts.views import require_confirmation
from adiuva.core.paging import TOTAL_COUNT
from adiuva.core.rest import Done, Problem, error_responses, user_id
from adiuva.export import services
from adiuva.export.models import Export
from adiuva.export.serializers import ExportSerializer


class ExportsView(ListAPIView[Export]):
    """Archives of all that the server holds of your account."""

    page_for_people = True
    page_row_detail = page_row_delete = "account-export"
    serializer_class = ExportSerializer
    queryset = Export.objects.none()

    def get_queryset(self) -> Any:
        return Export.objects.of(user_id(self.request))

    def get_serializer_class(self) -> Any:
        return ConfirmationSerializer if self.request.method == "POST" else ExportSerializer

    @extend_schema(
        summary="The exports of the last 30 days, the latest first",
        parameters=[TOTAL_COUNT],
        responses={200: ExportSerializer(many=True), **error_responses(400, 401)},
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self.list(request, *args, **kwargs)

    @extend_schema(
        summary="Export the whole account",
        operation_id="account_export",
        request=ConfirmationSerializer,
        responses={202: ExportSerializer, **error_responses(400, 401, 403, 409, 429)},
    )
    def post(self, request: Request) -> Response:
        """It is made in the background, one at a time, at most five a day. A new one replaces the archive before.

        The body confirms that it is the user (`{"password": …}`); else 403 `confirmation_required`.
        """
        require_confirmation(self, request)
        export = services.request_export(user_id=user_id(request))
        place = reverse("account-export", kwargs={"export_id": export.pk}, request=request)
        return Response(dict(ExportSerializer(export).data), status=202, headers={"Location": place})


class ExportView(APIView):
    """One export: how far it is, and how long its archive can be fetched."""

    page_for_people = True

    @extend_schema(
        summary="One export",
        operation_id="account_export_retrieve",
        responses={200: ExportSerializer, **error_responses(401, 404)},
    )
    def get(self, request: Request, export_id: UUID) -> Response:
        return Response(ExportSerializer(services.get_export(user_id(request), export_id)).data)

    @extend_schema(
        summary="Delete an archive before its time, or give up one that is being made",
        operation_id="account_export_delete",
        responses={200: Done, **error_responses(401, 404)},
    )
    def delete(self, request: Request, export_id: UUID) -> Response:
        services.delete_archive(export=services.get_export(user_id(request), export_id))
        return Response({"ok": True})


class ArchiveView(APIView):
    """The archive itself: a ZIP file of JSON lines, with a README.txt. For 24 hours it can be fetched, again too."""

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """Choose the renderer whatever the client accepts: the archive is a ZIP file, and refusals are JSON."""
        return super().perform_content_negotiation(request, force=True)

    @extend_schema(
        summary="Fetch an archive",
        operation_id="account_export_archive",
        responses={
            (200, "application/zip"): OpenApiTypes.BINARY,
            **error_responses(401, 404, 409),
            410: OpenApiResponse(Problem, "The archive was deleted."),
        },
    )
    def get(self, request: Request, export_id: UUID) -> StreamingHttpResponse:
        export = services.require_ready(services.get_export(user_id(request), export_id))
        return StreamingHttpResponse(
            services.stream_archive(export),
            content_type="application/zip",
            headers={
                "Content-Disposition": f'attachment; filename="adiuva-{export.created_at:%Y-%m-%d}.zip"',
                "Content-Length": str(export.size),
                "Cache-Control": "no-store",
            },
        )
