"""REST views of the catalogue, and of developers' own plugins."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.utils.cache import patch_cache_control
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.core.rest import Done, error_responses, user_id
from adiuva.object_store.views import StreamedBodies
from billing.marketplace import (
    bodies,
    catalogue,
    drafts,
    own_plugins,
    publication,
    ratings_and_reports,
    revocations,
    staff_reviews,
    submissions,
)
from billing.marketplace.serializers import (
    NewPluginSerializer,
    OwnPluginSerializer,
    OwnVersionSerializer,
    PluginChangeSerializer,
    PluginDetailSerializer,
    PluginListSerializer,
    PluginQuerySerializer,
    RatedSerializer,
    RatingSerializer,
    ReportSerializer,
    RevocationListSerializer,
    SigningKeysSerializer,
    SubmitSerializer,
    YankSerializer,
)


def _valid(serializer: type[Any], data: Any) -> dict[str, Any]:
    body = serializer(data=data)
    body.is_valid(raise_exception=True)
    found: dict[str, Any] = body.validated_data
    return found


class PluginsView(APIView):
    """The catalogue."""

    serializer_class = NewPluginSerializer

    @extend_schema(
        summary="What is listed",
        operation_id="plugins_list",
        parameters=[PluginQuerySerializer],
        responses={200: PluginListSerializer, **error_responses(400, 401)},
    )
    def get(self, request: Request) -> Response:
        found = catalogue.find(**_valid(PluginQuerySerializer, request.query_params))
        plugins = [catalogue.described(plugin) for plugin in found.plugins]
        body = {"plugins": plugins, "total": found.total, "page": found.page}
        return Response(PluginListSerializer(body).data)

    @extend_schema(
        summary="Take the id of a new plugin",
        operation_id="plugins_create",
        request=NewPluginSerializer,
        responses={201: OwnPluginSerializer, **error_responses(400, 401, 403, 404, 409)},
    )
    def post(self, request: Request) -> Response:
        plugin = drafts.create(user_id=user_id(request), **_valid(NewPluginSerializer, request.data))
        return Response(_own(plugin), status=201)


def _own(plugin: Any) -> Any:
    return OwnPluginSerializer({**catalogue.described(plugin), "state": plugin.state}).data


class OwnPluginsView(APIView):
    """The plugins that you publish."""

    @extend_schema(
        summary="The plugins that you publish",
        operation_id="plugins_own",
        responses={200: OwnPluginSerializer(many=True), **error_responses(401)},
    )
    def get(self, request: Request) -> Response:
        return Response(OwnPluginSerializer(own_plugins.plugins(user_id(request)), many=True).data)


class PluginView(APIView):
    """One plugin."""

    serializer_class = PluginChangeSerializer

    @extend_schema(
        summary="A plugin with its manifest",
        operation_id="plugins_retrieve",
        responses={200: PluginDetailSerializer, **error_responses(401, 404)},
    )
    def get(self, request: Request, plugin_id: UUID) -> Response:
        plugin = catalogue.get(plugin_id, user_id=user_id(request))
        return Response(PluginDetailSerializer(catalogue.in_full(plugin)).data)

    @extend_schema(
        summary="Change a plugin that you publish",
        operation_id="plugins_partial_update",
        request=PluginChangeSerializer,
        responses={200: OwnPluginSerializer, **error_responses(400, 401, 404)},
    )
    def patch(self, request: Request, plugin_id: UUID) -> Response:
        given = _valid(PluginChangeSerializer, request.data)
        listed = given.pop("listed", None)
        me = user_id(request)
        plugin = drafts.change(user_id=me, plugin_id=plugin_id, **given)
        if listed is not None:
            plugin = (publication.offer_again if listed else publication.withdraw)(
                user_id=me, plugin_id=plugin_id
            )
        return Response(_own(plugin))


class VersionsView(StreamedBodies):
    """The versions of a plugin that you publish."""

    body_streams = {"POST": bodies.package}

    @extend_schema(
        summary="The versions of a plugin that you publish",
        operation_id="plugins_versions",
        responses={200: OwnVersionSerializer(many=True), **error_responses(401, 404)},
    )
    def get(self, request: Request, plugin_id: UUID) -> Response:
        found = own_plugins.versions(user_id(request), plugin_id)
        return Response(OwnVersionSerializer(found, many=True).data)

    @extend_schema(
        summary="Upload a package",
        operation_id="plugins_upload",
        request={"application/zip": OpenApiTypes.BINARY},
        responses={
            201: OwnVersionSerializer,
            **error_responses(400, 401, 403, 404, 408, 409, 413, 415, 429, 503, 507),
        },
    )
    def post(self, request: Request, plugin_id: UUID) -> Response:
        """The package is checked at once. `findings` of a 400 say what keeps it from being published."""
        return self.take_body(request, plugin_id=plugin_id)


class VersionView(APIView):
    """A version of a plugin that you publish."""

    @extend_schema(
        summary="A version that you uploaded, with what the checks say",
        operation_id="plugins_version",
        responses={200: OwnVersionSerializer, **error_responses(401, 404)},
    )
    def get(self, request: Request, plugin_id: UUID, version: str) -> Response:
        return _version(request, plugin_id, version)

    @extend_schema(
        summary="Delete a draft",
        operation_id="plugins_version_destroy",
        responses={200: Done, **error_responses(401, 404, 409)},
    )
    def delete(self, request: Request, plugin_id: UUID, version: str) -> Response:
        drafts.delete(user_id=user_id(request), plugin_id=plugin_id, version=version)
        return Response({"ok": True})


def _version(request: Request, plugin_id: UUID, version: str) -> Response:
    return Response(OwnVersionSerializer(own_plugins.version(user_id(request), plugin_id, version)).data)


_STEP: Any = {"responses": {200: OwnVersionSerializer, **error_responses(400, 401, 403, 404, 409)}}


class SubmitView(APIView):
    serializer_class = SubmitSerializer

    @extend_schema(
        summary="Hand a version in", operation_id="plugins_submit", request=SubmitSerializer, **_STEP
    )
    def post(self, request: Request, plugin_id: UUID, version: str) -> Response:
        notes = _valid(SubmitSerializer, request.data)["notes"]
        submissions.submit(user_id=user_id(request), plugin_id=plugin_id, version=version, notes=notes)
        return _version(request, plugin_id, version)


class WithdrawView(APIView):
    @extend_schema(
        summary="Take a version back before it is listed",
        operation_id="plugins_withdraw",
        request=None,
        **_STEP,
    )
    def post(self, request: Request, plugin_id: UUID, version: str) -> Response:
        submissions.withdraw(user_id=user_id(request), plugin_id=plugin_id, version=version)
        return _version(request, plugin_id, version)


class YankView(APIView):
    serializer_class = YankSerializer

    @extend_schema(
        summary="Take a version off the list", operation_id="plugins_yank", request=YankSerializer, **_STEP
    )
    def post(self, request: Request, plugin_id: UUID, version: str) -> Response:
        """It can no longer be installed; users who have it keep it."""
        reason = _valid(YankSerializer, request.data)["reason"]
        publication.yank(user_id=user_id(request), plugin_id=plugin_id, version=version, reason=reason)
        return _version(request, plugin_id, version)

    @extend_schema(summary="Put a yanked version back", operation_id="plugins_unyank", **_STEP)
    def delete(self, request: Request, plugin_id: UUID, version: str) -> Response:
        publication.unyank(user_id=user_id(request), plugin_id=plugin_id, version=version)
        return _version(request, plugin_id, version)


class RatingView(APIView):
    """Your rating of a plugin."""

    serializer_class = RatingSerializer

    @extend_schema(
        summary="Rate a plugin that you have had installed for a day",
        operation_id="plugins_rate",
        request=RatingSerializer,
        responses={200: RatedSerializer, **error_responses(400, 401, 403, 404)},
    )
    def put(self, request: Request, plugin_id: UUID) -> Response:
        stars = _valid(RatingSerializer, request.data)["stars"]
        plugin = ratings_and_reports.rate(user_id=user_id(request), plugin_id=plugin_id, stars=stars)
        body = {"rating": catalogue.average(plugin), "ratings": plugin.ratings}
        return Response(RatedSerializer(body).data)

    @extend_schema(
        summary="Take your rating back",
        operation_id="plugins_rating_destroy",
        responses={200: Done, **error_responses(401, 404)},
    )
    def delete(self, request: Request, plugin_id: UUID) -> Response:
        ratings_and_reports.take_rating_back(user_id=user_id(request), plugin_id=plugin_id)
        return Response({"ok": True})


class ReportView(APIView):
    serializer_class = ReportSerializer

    @extend_schema(
        summary="Tell staff that something is wrong with a plugin",
        operation_id="plugins_report",
        request=ReportSerializer,
        responses={200: Done, **error_responses(400, 401, 404)},
    )
    def post(self, request: Request, plugin_id: UUID) -> Response:
        given = _valid(ReportSerializer, request.data)
        ratings_and_reports.report(user_id=user_id(request), plugin_id=plugin_id, **given)
        return Response({"ok": True})


class _OpenView(APIView):
    authentication_classes = []
    permission_classes = [AllowAny]


class RevocationsView(_OpenView):
    """The list of revocations."""

    @extend_schema(
        auth=[],
        summary="The signed list of what was revoked",
        operation_id="plugins_revocations",
        responses={200: RevocationListSerializer, **error_responses(503)},
    )
    def get(self, request: Request) -> Response:
        """`counter` only grows; the list counts until `expires_at`. docs/plugins.md describes how to check it."""
        response = Response(RevocationListSerializer(revocations.body(revocations.signed_list())).data)
        patch_cache_control(response, public=True, max_age=60)
        return response


class KeysView(_OpenView):
    """The keys with which plugins are signed."""

    @extend_schema(
        auth=[],
        summary="The public keys of signatures",
        operation_id="plugins_keys",
        responses={200: SigningKeysSerializer, **error_responses(503)},
    )
    def get(self, request: Request) -> Response:
        return Response(SigningKeysSerializer({"keys": staff_reviews.keys().public_keys()}).data)
