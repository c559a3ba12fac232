"""REST views of installing plugins, and of their packages. Every query starts from the request's user."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.core.rest import Done, Problem, error_responses, user_id
from adiuva.object_store import threads
from adiuva.object_store.store import store
from billing.marketplace import installs
from billing.marketplace.install_serializers import (
    InstalledPluginSerializer,
    InstalledSerializer,
    InstallSerializer,
    PaymentRequiredSerializer,
)

_GONE: Final = OpenApiResponse(Problem, "The version was revoked; `reason` says why.")


class InstallView(APIView):
    """Install a plugin, or update it, or remove it. The client does the work on the device."""

    serializer_class = InstallSerializer

    @extend_schema(
        summary="Install or update a plugin",
        operation_id="plugin_install",
        request=InstallSerializer,
        responses={
            200: InstalledSerializer,
            **error_responses(400, 401, 403, 404, 409, 503),
            402: OpenApiResponse(PaymentRequiredSerializer, "It has to be bought first."),
            410: _GONE,
        },
    )
    def post(self, request: Request, plugin_id: UUID) -> Response:
        body = InstallSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        agreed = body.validated_data.get("permissions")
        done = installs.install(user_id=user_id(request), plugin_id=plugin_id, agreed=agreed)
        version = done.version
        answer = {
            "ok": True,
            "download_url": f"{settings.PUBLIC_URL}{done.path}",
            "version": version.version,
            "permissions": version.permissions,
            "sha256": version.sha256,
            "size": version.size,
            "signature": version.signature,
            "key_id": version.key_id,
            "reviewed_at": version.reviewed_at,
        }
        return Response(InstalledSerializer(answer).data, headers={"Cache-Control": "no-store"})

    @extend_schema(
        summary="Remove a plugin",
        operation_id="plugin_uninstall",
        responses={200: Done, **error_responses(401, 404)},
    )
    def delete(self, request: Request, plugin_id: UUID) -> Response:
        installs.uninstall(user_id=user_id(request), plugin_id=plugin_id)
        return Response({"ok": True})


class InstalledPluginsView(APIView):
    """Your plugins, with updates and revocations."""

    @extend_schema(
        summary="Your plugins",
        operation_id="plugins_installed",
        responses={200: InstalledPluginSerializer(many=True), **error_responses(401)},
    )
    def get(self, request: Request) -> Response:
        found = installs.installed(user_id(request))
        return Response(InstalledPluginSerializer(found, many=True).data)


class UpdatesView(APIView):
    """Your plugins that have a newer version, and those that must not be used any more."""

    @extend_schema(
        summary="What there is to update",
        operation_id="plugins_updates",
        responses={200: InstalledPluginSerializer(many=True), **error_responses(401)},
    )
    def get(self, request: Request) -> Response:
        mine = installs.installed(user_id(request))
        found = [each for each in mine if each["update"] or each["revoked"] or each["refunded"]]
        return Response(InstalledPluginSerializer(found, many=True).data)


class DownloadView(APIView):
    """A package, by the address that installing it gave: it names the user and ends after 5 minutes."""

    authentication_classes = []
    permission_classes = [AllowAny]

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """Accept any type: the package has one form, and refusals are JSON."""
        return super().perform_content_negotiation(request, force=True)

    @extend_schema(
        auth=[],
        summary="Fetch a package",
        operation_id="plugin_download",
        parameters=[OpenApiParameter("token", str, required=True)],
        responses={
            (200, "application/zip"): OpenApiTypes.BINARY,
            **error_responses(404, 503),
            410: _GONE,
        },
    )
    def get(self, request: Request) -> HttpResponseBase:
        version = installs.package_of(request.query_params.get("token", ""))
        name = f"{version.manifest.get('id', 'plugin')}-{version.version}.zip"
        return StreamingHttpResponse(
            _pieces(store().read(version.object, 0, version.size)),
            content_type="application/zip",
            headers={
                "Content-Disposition": f'attachment; filename="{name}"',
                "Content-Length": str(version.size),
                "Cache-Control": "private, no-store",
                "X-Checksum": version.sha256,
            },
        )


async def _pieces(found: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (piece := await threads.run(_next, found)) is not None:
        yield piece


def _next(pieces: Iterator[bytes]) -> bytes | None:
    return next(pieces, None)
