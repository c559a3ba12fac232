"""The endpoints under /api/v1/auth/, which call services."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast
from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import Throttled
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.accounts import mail_link_actions, reauthentication, services, throttles
from adiuva.accounts.authentication import BearerAuthentication
from adiuva.accounts.models import RevokedReason, Session, StaffAction, User
from adiuva.accounts.serializers import (
    AddressChangeSerializer,
    AddressSerializer,
    ConfirmationSerializer,
    CredentialsSerializer,
    LinkTokenSerializer,
    MeSerializer,
    NewPasswordSerializer,
    PasswordChangeSerializer,
    RefreshSerializer,
    SessionsEndedSerializer,
    SessionSerializer,
    StaffActionSerializer,
    TicketSerializer,
    TokensSerializer,
)
from adiuva.core.paging import TOTAL_COUNT
from adiuva.core.rest import Done, error_responses


def uncached(body: dict[str, Any], status: int = 200) -> Response:
    return Response(body, status=status, headers={"Cache-Control": "no-store"})


def require_confirmation(
    view: APIView, request: Request, serializer: type[ConfirmationSerializer] = ConfirmationSerializer
) -> dict[str, Any]:
    """Raise ConfirmationRequired unless the body confirms that it is the user. Returns the rest of the body."""
    body = serializer(data=request.data)
    body.is_valid(raise_exception=True)
    data: dict[str, Any] = body.validated_data
    given = {name: data.pop(name) for name in ("password", "passkey")}
    if any(given.values()):  # counts guesses of somebody who holds a session
        throttle = throttles.UserThrottle()
        if not throttle.allow_request(request, view):
            raise Throttled(throttle.wait())
    reauthentication.require(user=cast(User, request.user), **given)
    return data


class AuthView(GenericAPIView[Any]):
    def body(self, request: Request) -> dict[str, Any]:
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        data: dict[str, Any] = serializer.validated_data
        return data

    @property
    def me(self) -> User:
        return cast(User, self.request.user)  # IsAuthenticated has refused anonymous requests

    @property
    def session(self) -> Session | None:
        """Return the session of the bearer token, or of the browser."""
        if isinstance(self.request.auth, Session):
            return self.request.auth
        return getattr(self.request._request, "browser_session", None)


class AnonymousView(AuthView):
    # No authentication classes, so that an expired access token is not refused here.
    authentication_classes = []
    permission_classes = [AllowAny]


class RegisterView(AnonymousView):
    """Create an account and sign in.

    The answer is the same whether the address has an account or not; a mail tells its owner. Only a server that sends
    no mails answers 409 `email_taken`.
    """

    serializer_class = CredentialsSerializer
    throttle_classes = [throttles.MailThrottle]

    @extend_schema(auth=[], responses={201: TokensSerializer, **error_responses(400, 409, 429)})
    def post(self, request: Request) -> Response:
        tokens = services.register(**self.body(request), user_agent=request.headers.get("User-Agent", ""))
        return uncached(asdict(tokens), 201)


class LoginView(AnonymousView):
    """Sign in. A wrong password, an unknown address and an inactive account get the same answer.

    An account with a second factor answers 403 `second_factor_required` to the right password, with `ticket`,
    `methods` (`totp`, `passkey`, `recovery_code`) and `expires_at`: go on at /auth/login/second-factor.
    """

    serializer_class = CredentialsSerializer
    throttle_classes = [throttles.AddressAndEmailThrottle]

    @extend_schema(auth=[], responses={200: TokensSerializer, **error_responses(400, 401, 403, 429)})
    def post(self, request: Request) -> Response:
        tokens = services.login(**self.body(request), user_agent=request.headers.get("User-Agent", ""))
        return uncached(asdict(tokens))


class RefreshView(AnonymousView):
    """Exchange the newest refresh token for new tokens.

    For half a minute the one before is answered with the same new refresh token, should an answer be lost. An
    older one ends the session for everybody who holds a token of it (`refresh_reused`).
    """

    serializer_class = RefreshSerializer
    throttle_classes = [throttles.RefreshThrottle]

    @extend_schema(auth=[], responses={200: TokensSerializer, **error_responses(400, 401, 429)})
    def post(self, request: Request) -> Response:
        return uncached(asdict(services.refresh(**self.body(request))))


class LogoutView(AuthView):
    """End the session of the token. Its sockets close within seconds."""

    authentication_classes = [BearerAuthentication]

    @extend_schema(request=None, responses={200: Done, **error_responses(401)})
    def post(self, request: Request) -> Response:
        services.logout(session=cast(Session, request.auth))
        return Response({"ok": True})


class MeView(AuthView):
    """The account that is signed in."""

    page_for_people = True
    serializer_class = MeSerializer

    @extend_schema(responses={200: MeSerializer, **error_responses(401)})
    def get(self, request: Request) -> Response:
        return Response(self.get_serializer(self.me).data)

    @extend_schema(responses={200: MeSerializer, **error_responses(400, 401)})
    def patch(self, request: Request) -> Response:
        """Change the time zone or the locale."""
        serializer = self.get_serializer(self.me, data=request.data, partial=True)
        serializer.is_valid(raise_exception=True)
        serializer.save()
        return Response(serializer.data)

    @extend_schema(
        request=ConfirmationSerializer, responses={200: Done, **error_responses(400, 401, 403, 429)}
    )
    def delete(self, request: Request) -> Response:
        """Delete the account with everything the server holds of it, for ever.

        Of an account with more than 10,000 rows, the key is destroyed and the account closed when this is answered:
        what was sealed for it can be read by nobody, nobody can sign in, and the address is free. Its rows are deleted
        within minutes.

        The body confirms that it is the user (`{"password": …}`); else 403 `confirmation_required`.
        """
        require_confirmation(self, request)
        services.delete_account(user=self.me)
        return Response({"ok": True})


class PasswordView(AuthView):
    """Change the password. All other devices are signed out."""

    serializer_class = PasswordChangeSerializer
    throttle_classes = [throttles.UserThrottle]

    @extend_schema(responses={200: Done, **error_responses(400, 401, 429)})
    def post(self, request: Request) -> Response:
        given = self.body(request)
        services.change_password(
            user=self.me, current=given["current_password"], new=given["new_password"], keep=self.session
        )
        return Response({"ok": True})


class TicketView(AuthView):
    """A one-time ticket for the device socket, for browsers, which cannot send a header there."""

    authentication_classes = [BearerAuthentication]

    @extend_schema(request=None, responses={200: TicketSerializer, **error_responses(401)})
    def post(self, request: Request) -> Response:
        ticket, expires_at = services.issue_ticket(session=cast(Session, request.auth))
        return uncached({"ticket": ticket, "expires_at": expires_at})


class SessionsView(AuthView, ListAPIView[Session]):
    """Where the account is signed in, the last used first."""

    page_for_people = True
    page_row_delete = "auth:session"
    serializer_class = SessionSerializer

    def get_queryset(self) -> QuerySet[Session]:
        return Session.objects.live().filter(user=self.me).order_by("-last_used_at", "-id")

    @extend_schema(
        parameters=[TOTAL_COUNT], responses={200: SessionSerializer(many=True), **error_responses(400, 401)}
    )
    def get(self, request: Request) -> Response:
        return self.list(request)

    @extend_schema(
        operation_id="auth_sessions_end_others",
        responses={200: SessionsEndedSerializer, **error_responses(401)},
    )
    def delete(self, request: Request) -> Response:
        """Sign out all other devices."""
        ended = services.end_sessions(user=self.me, reason=RevokedReason.OTHER_DEVICE, keep=self.session)
        return Response({"ok": True, "ended": ended})


class SessionView(AuthView):
    """A device that is signed in."""

    @extend_schema(operation_id="auth_session_end", responses={200: Done, **error_responses(401, 404)})
    def delete(self, request: Request, id: UUID) -> Response:
        """Sign it out."""
        services.end_session(user=self.me, session_id=id)
        return Response({"ok": True})


class StaffActionsView(AuthView, ListAPIView[StaffAction]):
    """What staff did to the account, the latest first."""

    page_for_people = True
    serializer_class = StaffActionSerializer

    def get_queryset(self) -> QuerySet[StaffAction]:
        return StaffAction.objects.filter(user=self.me)

    @extend_schema(
        parameters=[TOTAL_COUNT],
        responses={200: StaffActionSerializer(many=True), **error_responses(400, 401)},
    )
    def get(self, request: Request) -> Response:
        return self.list(request)


# ── Through links in mails ────────────────────────────────────────────────────────────────────────────────


class SendVerificationView(AuthView):
    """Mail the link that confirms the account's address once more; nothing if it is confirmed."""

    throttle_classes = [throttles.UserMailThrottle]

    @extend_schema(request=None, responses={202: Done, **error_responses(401, 429, 503)})
    def post(self, request: Request) -> Response:
        mail_link_actions.ask_verification(user=self.me)
        return Response({"ok": True}, status=202)


class VerifyView(AnonymousView):
    """Confirm the address of an account with the token of the mail."""

    serializer_class = LinkTokenSerializer
    throttle_classes = [throttles.AddressThrottle]

    @extend_schema(auth=[], responses={200: Done, **error_responses(400, 409, 429)})
    def post(self, request: Request) -> Response:
        mail_link_actions.verify_address(**self.body(request))
        return Response({"ok": True})


class PasswordResetView(AnonymousView):
    """Mail a link to set a new password. The answer is the same if the address has no account."""

    serializer_class = AddressSerializer
    throttle_classes = [throttles.MailThrottle]

    @extend_schema(auth=[], responses={202: Done, **error_responses(400, 429, 503)})
    def post(self, request: Request) -> Response:
        mail_link_actions.ask_password_reset(**self.body(request))
        return Response({"ok": True}, status=202)


class PasswordResetConfirmView(AnonymousView):
    """Set a new password with the token of the mail. All devices are signed out."""

    serializer_class = NewPasswordSerializer
    throttle_classes = [throttles.AddressThrottle]

    @extend_schema(auth=[], responses={200: Done, **error_responses(400, 409, 429)})
    def post(self, request: Request) -> Response:
        mail_link_actions.reset_password(**self.body(request))
        return Response({"ok": True})


class AddressChangeView(AuthView):
    """Ask for another address. It is that of the account once the mail to it is answered; the old one is told."""

    serializer_class = AddressChangeSerializer
    throttle_classes = [throttles.UserMailThrottle]

    @extend_schema(responses={202: Done, **error_responses(400, 401, 403, 429, 503)})
    def post(self, request: Request) -> Response:
        new = require_confirmation(self, request, AddressChangeSerializer)
        mail_link_actions.ask_address_change(user=self.me, **new)
        return Response({"ok": True}, status=202)


class AddressConfirmView(AnonymousView):
    """Make the new address that of the account, with the token of the mail."""

    serializer_class = LinkTokenSerializer
    throttle_classes = [throttles.AddressThrottle]

    @extend_schema(auth=[], responses={200: Done, **error_responses(400, 409, 429)})
    def post(self, request: Request) -> Response:
        mail_link_actions.confirm_address_change(**self.body(request))
        return Response({"ok": True})
