"""REST views to connect accounts, and the page that the browser returns to. Queries start from the request's user."""

from __future__ import annotations

import secrets
from dataclasses import asdict
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import structlog
from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.db import close_old_connections
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext
from django.views import View
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import mixins, viewsets
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.accounts.models import User
from adiuva.core.errors import AdiuvaError, NotFound
from adiuva.core.language import said, speaking_to
from adiuva.core.paging import TOTAL_COUNT
from adiuva.core.rest import error_responses, user_id
from billing.entitlements import QuotaExceeded
from integrations import connections, oauth, tokens
from integrations.errors import ConsentFailed
from integrations.models import Connection, Provider
from integrations.serializers import (
    AuthorizationSerializer,
    AuthorizeSerializer,
    CompletionSerializer,
    ConnectionSerializer,
    PartingSerializer,
    RefreshConnectionSerializer,
)

log = structlog.get_logger(__name__)

_PROVIDER = OpenApiParameter("provider", str, OpenApiParameter.PATH, enum=Provider.values)


class AuthorizeView(APIView):
    """Connect an account: open the address in the user's browser; the rest happens there."""

    @extend_schema(
        summary="Connect a Gmail, Outlook or Teams account",
        parameters=[_PROVIDER, AuthorizeSerializer],
        responses={200: AuthorizationSerializer, **error_responses(400, 401, 402, 404, 503)},
        operation_id="oauth_authorize",
    )
    def get(self, request: Request, provider: str) -> Response:
        _known(provider)
        query = AuthorizeSerializer(data=request.query_params.dict())
        query.is_valid(raise_exception=True)
        again = query.validated_data.get("connection")
        url = oauth.start_consent(
            user_id=user_id(request),
            provider=provider,
            connection=_mine(request, provider, again) if again else None,
        )
        return Response({"authorization_url": url}, headers={"Cache-Control": "no-store"})


class RefreshView(APIView):
    """Get a new access token now. It stays on the server; the answer says how the connection is."""

    @extend_schema(
        summary="Refresh a connection's token",
        parameters=[_PROVIDER],
        request=RefreshConnectionSerializer,
        responses={200: ConnectionSerializer, **error_responses(400, 401, 404, 409, 503)},
        operation_id="oauth_refresh",
    )
    def post(self, request: Request, provider: str) -> Response:
        _known(provider)
        body = RefreshConnectionSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        mine, chosen = user_id(request), body.validated_data.get("connection")
        row = _mine(request, provider, chosen) if chosen else connections.get_only_connection(mine, provider)
        tokens.refresh_now(row.pk, user_id=mine)
        return Response(ConnectionSerializer(connections.get_connection(mine, row.pk)).data)


@extend_schema_view(
    list=extend_schema(
        summary="Your connected accounts, newest first",
        parameters=[TOTAL_COUNT],
        responses={200: ConnectionSerializer(many=True), **error_responses(400, 401)},
    ),
    retrieve=extend_schema(
        summary="One connected account", responses={200: ConnectionSerializer, **error_responses(401, 404)}
    ),
)
class ConnectionViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[Connection]
):
    """Accounts at providers that agents of the user may read. Tokens stay on the server, sealed."""

    page_for_people = True
    serializer_class = ConnectionSerializer
    queryset = Connection.objects.none()

    def get_queryset(self) -> Any:
        return Connection.objects.of(user_id(self.request))

    @extend_schema(
        summary="Disconnect an account", responses={200: PartingSerializer, **error_responses(401, 404)}
    )
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Deletes its tokens at once; then asks the provider to revoke the permission."""
        row = self.get_object()
        parting = connections.disconnect(user_id=user_id(request), connection_id=row.pk)
        return Response({"ok": True, **asdict(parting)})


class _PageView(View):
    """A page below the API, in the visitor's language."""

    http_method_names = ["get"]  # no HEAD: a link preview must not use up the state

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        with speaking_to(request):
            return super().dispatch(request, *args, **kwargs)

    def http_method_not_allowed(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Answer in the form of the API, below which the page is."""
        response = super().http_method_not_allowed(request, *args, **kwargs)
        body = {"code": "method_not_allowed", "message": f'Method "{request.method}" not allowed.'}
        return JsonResponse(body, status=response.status_code, headers={"Allow": response["Allow"]})


class CallbackView(_PageView):
    """The page to which a provider redirects the browser. Not authenticated: the state says whose consent it is."""

    def get(self, request: HttpRequest, provider: str) -> HttpResponse:
        if provider not in Provider.values:
            raise Http404
        visitor = request.user.pk if isinstance(request.user, User) else None
        close_old_connections()  # free the pooled connection while waiting for the provider
        try:
            done = oauth.complete_consent(provider, request.GET.dict(), signed_in=visitor)
        except AdiuvaError as problem:
            return _problem_page(request, provider, problem)
        if isinstance(done, oauth.Returned):
            return _page(request, provider, returned=done)
        return _page(request, provider, row=done.row, instead_of=done.instead_of)


class FinishView(_PageView):
    """The page on which a user signs in to finish a consent that returned in a browser where they were not."""

    def get(self, request: HttpRequest, provider: str) -> HttpResponse:
        if provider not in Provider.values:
            raise Http404
        if not isinstance(request.user, User):
            return redirect_to_login(request.get_full_path())
        visitor = request.user.pk
        close_old_connections()  # free the pooled connection while waiting for the provider
        try:
            done = oauth.finish_consent(
                user_id=visitor, provider=provider, completion=request.GET.get("completion", "")
            )
        except AdiuvaError as problem:
            return _problem_page(request, provider, problem)
        return _page(request, provider, row=done.row, instead_of=done.instead_of)


class CompleteView(APIView):
    """Finish connecting an account that this user began to connect, with the completion of the link back to the app."""

    @extend_schema(
        summary="Finish connecting an account",
        parameters=[_PROVIDER],
        request=CompletionSerializer,
        responses={200: ConnectionSerializer, **error_responses(400, 401, 402, 404, 503)},
        operation_id="oauth_complete",
    )
    def post(self, request: Request, provider: str) -> Response:
        _known(provider)
        body = CompletionSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        mine = user_id(request)
        done = oauth.finish_consent(user_id=mine, provider=provider, **body.validated_data)
        return Response(ConnectionSerializer(connections.get_connection(mine, done.row.pk)).data)


def _problem_page(request: HttpRequest, provider: str, problem: AdiuvaError) -> HttpResponse:
    told, why = said(problem.message), ""
    # Otherwise it is a fault that the visitor can do nothing about.
    if not isinstance(problem, ConsentFailed | QuotaExceeded):
        why = problem.message
        told = gettext(
            "{name} cannot be connected at the moment. Nothing was connected: please try again later."
        )
        told = told.format(name=Provider(provider).label)
    log.info("consent.failed", provider=provider, code=problem.code, why=why)
    return _page(request, provider, problem=told)


def _page(
    request: HttpRequest,
    provider: str,
    *,
    returned: oauth.Returned | None = None,
    row: Connection | None = None,
    instead_of: Connection | None = None,
    problem: str = "",
) -> HttpResponse:
    """Return a page about the outcome. It loads nothing, runs nothing, and tells nobody where it came from."""
    nonce = secrets.token_urlsafe(16)
    said = {"status": "connected", "connection": str(row.pk)} if row else {"status": "failed"}
    finish = ""
    if returned:
        said = {"status": "returned", "completion": returned.completion}
        finish = (
            f"{reverse('oauth-finish', args=[provider])}?{urlencode({'completion': returned.completion})}"
        )
    context = {
        "name": Provider(provider).label,
        "account": row.address if row else "",
        "owner": row.user.email if row else returned.owner.email if returned else "",
        "finish": finish,
        "other": instead_of,
        "problem": problem,
        "back": f"{settings.APP_LINK}oauth/{provider}?{urlencode(said)}",
        "nonce": nonce,
    }
    response = render(request, "integrations/callback.html", context, status=200 if row or returned else 400)
    response["Cache-Control"] = "no-store"
    response["Referrer-Policy"] = "no-referrer"
    response["Content-Security-Policy"] = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    response["X-Robots-Tag"] = "noindex"
    return response


def _known(provider: str) -> None:
    if provider not in Provider.values:
        raise NotFound("there is no such provider")


def _mine(request: Request, provider: str, connection_id: UUID) -> Connection:
    row = connections.get_connection(user_id(request), connection_id)
    if row.provider != provider:
        raise NotFound("there is no such connection")
    return row
