"""REST views of single sign-on: for apps that sign in, and for owners who set it up."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from uuid import UUID

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from adiuva.accounts import throttles, tokens
from adiuva.accounts.serializers import ConfirmationSerializer, TokensSerializer
from adiuva.accounts.views import AnonymousView, AuthView, require_confirmation, uncached
from adiuva.core.rest import Done, error_responses, user_id
from billing.sso import configuration, signing_in
from billing.sso.serializers import (
    BeginSerializer,
    BegunSerializer,
    DomainSerializer,
    FinishSerializer,
    RequireSsoSerializer,
    SetSsoSerializer,
    SsoSerializer,
)


class BeginView(AnonymousView):
    """Begin to sign in through an organisation.

    Open the address in the user's browser. It comes back to this server, whose page leads on to the app with a `code`.
    """

    serializer_class = BeginSerializer
    throttle_classes = [throttles.AddressAndEmailThrottle]

    @extend_schema(
        auth=[],
        summary="The page of an organisation on which to sign in",
        operation_id="auth_sso_begin",
        responses={200: BegunSerializer, **error_responses(400, 404, 429, 503)},
    )
    def post(self, request: Request) -> Response:
        url, _ = signing_in.begin(**self.body(request))
        return uncached({"authorization_url": url})


class FinishView(AnonymousView):
    """Finish it in the app that began, with the `code` of the link and the verifier of its challenge."""

    serializer_class = FinishSerializer
    throttle_classes = [throttles.AddressThrottle]

    @extend_schema(
        auth=[],
        summary="Sign in with what the organisation's page brought back",
        operation_id="auth_sso_finish",
        responses={200: TokensSerializer, **error_responses(400, 401, 403, 429)},
    )
    def post(self, request: Request) -> Response:
        session = signing_in.finish_app(
            **self.body(request), user_agent=request.headers.get("User-Agent", "")
        )
        return uncached(asdict(tokens.issue(session)))


class SsoView(AuthView):
    """The single sign-on of the team that you own."""

    serializer_class = SetSsoSerializer

    @extend_schema(
        summary="How your team signs in",
        operation_id="team_sso",
        responses={200: SsoSerializer, **error_responses(401)},
    )
    def get(self, request: Request) -> Response:
        """Without a provider, all but `redirect_uri` is empty."""
        return _described(request)

    @extend_schema(
        summary="Set your organisation's provider",
        operation_id="team_sso_set",
        responses={200: SsoSerializer, **error_responses(400, 401, 403, 404, 429, 503)},
    )
    def put(self, request: Request) -> Response:
        """Asks the issuer for its addresses at once. The body confirms that it is you (`{"password": …}`)."""
        given = require_confirmation(self, request, SetSsoSerializer)
        configuration.set_provider(owner_id=user_id(request), **given)
        return _described(request)

    @extend_schema(
        summary="Require it of your members, or no longer",
        operation_id="team_sso_require",
        request=RequireSsoSerializer,
        responses={200: SsoSerializer, **error_responses(400, 401, 403, 404, 409, 429)},
    )
    def patch(self, request: Request) -> Response:
        given = require_confirmation(self, request, RequireSsoSerializer)
        configuration.require(owner_id=user_id(request), **given)
        return _described(request)

    @extend_schema(
        summary="Remove it",
        operation_id="team_sso_remove",
        request=ConfirmationSerializer,
        responses={200: Done, **error_responses(400, 401, 403, 404, 429)},
    )
    def delete(self, request: Request) -> Response:
        require_confirmation(self, request)
        configuration.remove_provider(owner_id=user_id(request))
        return Response({"ok": True})


class DomainsView(AuthView):
    """Name a domain whose addresses sign in this way. The answer has the record that its DNS must hold."""

    serializer_class = DomainSerializer

    @extend_schema(
        summary="Add a domain",
        operation_id="team_sso_domain_add",
        responses={201: DomainSerializer, **error_responses(400, 401, 404, 409)},
    )
    def post(self, request: Request) -> Response:
        domain = configuration.add_domain(owner_id=user_id(request), **self.body(request))
        return Response(DomainSerializer(configuration.described(domain)).data, status=201)


class DomainView(AuthView):
    serializer_class = DomainSerializer

    @extend_schema(
        summary="Look whether the domain's DNS holds the record",
        operation_id="team_sso_domain_prove",
        request=None,
        responses={200: DomainSerializer, **error_responses(401, 404, 409, 503)},
    )
    def post(self, request: Request, id: UUID) -> Response:
        domain = configuration.prove_domain(owner_id=user_id(request), domain_id=id)
        return Response(DomainSerializer(configuration.described(domain)).data)

    @extend_schema(
        summary="Remove a domain",
        operation_id="team_sso_domain_remove",
        request=None,
        responses={200: Done, **error_responses(401, 404)},
    )
    def delete(self, request: Request, id: UUID) -> Response:
        configuration.remove_domain(owner_id=user_id(request), domain_id=id)
        return Response({"ok": True})


def _described(request: Request) -> Response:
    found: dict[str, Any] = configuration.describe(user_id(request))
    return Response(SsoSerializer(found).data)
