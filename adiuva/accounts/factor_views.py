"""The endpoints for second factors under /api/v1/auth/: the second step of signing in, and what an account has."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from uuid import UUID

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from adiuva.accounts import passkeys, reauthentication, second_factors, services, throttles
from adiuva.accounts.models import Passkey, Totp
from adiuva.accounts.second_factors import Proof
from adiuva.accounts.serializers import (
    ConfirmationSerializer,
    NewPasskeySerializer,
    PasskeyAddedSerializer,
    PasskeyAnswerSerializer,
    PasskeyOptionsSerializer,
    PasskeySerializer,
    RecoveryCodesSerializer,
    SecondFactorLoginSerializer,
    SecondFactorsSerializer,
    TicketOrNothingSerializer,
    TokensSerializer,
    TotpCodeSerializer,
    TotpSerializer,
)
from adiuva.accounts.views import AnonymousView, AuthView, require_confirmation, uncached
from adiuva.core.rest import Done, error_responses


def _challenge(made: tuple[str, dict[str, Any]]) -> Response:
    return uncached({"handle": made[0], "options": made[1]})


# ── Signing in ──────────────────────────────────────────────────────────────────────────────────────────


class SecondFactorView(AnonymousView):
    """The second step of signing in, with the ticket of the first: a code of the app, a passkey or a recovery code."""

    serializer_class = SecondFactorLoginSerializer
    throttle_classes = [throttles.TicketThrottle]

    @extend_schema(auth=[], responses={200: TokensSerializer, **error_responses(400, 401, 429)})
    def post(self, request: Request) -> Response:
        given = self.body(request)
        agent = request.headers.get("User-Agent", "")
        ticket = given.pop("ticket")
        tokens = services.login_with_second_factor(ticket=ticket, proof=Proof(**given), user_agent=agent)
        return uncached(asdict(tokens))


class PasskeyOptionsView(AnonymousView):
    """A challenge for the browser's passkeys, to sign in with."""

    serializer_class = TicketOrNothingSerializer
    throttle_classes = [throttles.AddressThrottle]

    @extend_schema(auth=[], responses={200: PasskeyOptionsSerializer, **error_responses(400, 401, 429)})
    def post(self, request: Request) -> Response:
        ticket = self.body(request)["ticket"]
        if ticket:
            user = second_factors.user_of_ticket(ticket)
            return _challenge(passkeys.challenge("second factor", user))
        return _challenge(passkeys.challenge("sign in", None))


class PasskeyLoginView(AnonymousView):
    """Sign in with a passkey alone. Its device must have verified its owner."""

    serializer_class = PasskeyAnswerSerializer
    throttle_classes = [throttles.AddressThrottle]

    @extend_schema(auth=[], responses={200: TokensSerializer, **error_responses(400, 401, 429)})
    def post(self, request: Request) -> Response:
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        agent = request.headers.get("User-Agent", "")
        return uncached(
            asdict(services.login_with_passkey(passkey=serializer.validated_data, user_agent=agent))
        )


# ── What an account has ─────────────────────────────────────────────────────────────────────────────────


class SecondFactorsView(AuthView):
    """The second factors of the account."""

    @extend_schema(responses={200: SecondFactorsSerializer, **error_responses(401)})
    def get(self, request: Request) -> Response:
        rows = Passkey.objects.filter(user=self.me).order_by("created_at", "id")
        return Response(
            {
                "totp": Totp.objects.filter(user=self.me, confirmed_at__isnull=False).exists(),
                "passkeys": PasskeySerializer(rows, many=True).data,
                "recovery_codes_left": second_factors.recovery_codes_left(self.me),
            }
        )


class TotpView(AuthView):
    """The authenticator app. The body confirms that it is the user."""

    serializer_class = ConfirmationSerializer

    @extend_schema(responses={200: TotpSerializer, **error_responses(400, 401, 403, 409, 429)})
    def post(self, request: Request) -> Response:
        """Begin to add an app. It counts once its first code came to /auth/totp/confirm."""
        require_confirmation(self, request)
        secret, uri = second_factors.start_totp(user=self.me)
        return uncached({"secret": secret, "uri": uri})

    @extend_schema(
        request=ConfirmationSerializer, responses={200: Done, **error_responses(400, 401, 403, 404, 429)}
    )
    def delete(self, request: Request) -> Response:
        """Remove the app."""
        require_confirmation(self, request)
        second_factors.remove_totp(user=self.me)
        return Response({"ok": True})


class TotpConfirmView(AuthView):
    """Let the app count, with the code that it shows."""

    serializer_class = TotpCodeSerializer
    throttle_classes = [throttles.UserThrottle]

    @extend_schema(responses={200: RecoveryCodesSerializer, **error_responses(400, 401, 429)})
    def post(self, request: Request) -> Response:
        codes = second_factors.confirm_totp(user=self.me, **self.body(request))
        return uncached({"recovery_codes": codes})


class PasskeyRegisterOptionsView(AuthView):
    """A challenge for the browser to make a passkey with. The body confirms that it is the user."""

    serializer_class = ConfirmationSerializer

    @extend_schema(responses={200: PasskeyOptionsSerializer, **error_responses(400, 401, 403, 429)})
    def post(self, request: Request) -> Response:
        require_confirmation(self, request)
        return _challenge(passkeys.challenge_to_register(self.me))


class PasskeyConfirmOptionsView(AuthView):
    """A challenge for a passkey of the account, to confirm a request with instead of the password."""

    @extend_schema(request=None, responses={200: PasskeyOptionsSerializer, **error_responses(401)})
    def post(self, request: Request) -> Response:
        return _challenge(passkeys.challenge(reauthentication.PURPOSE, self.me))


class PasskeysView(AuthView):
    """Add the passkey that the browser made."""

    serializer_class = NewPasskeySerializer

    @extend_schema(responses={201: PasskeyAddedSerializer, **error_responses(400, 401)})
    def post(self, request: Request) -> Response:
        passkey, codes = second_factors.add_passkey(user=self.me, **self.body(request))
        return uncached({**PasskeySerializer(passkey).data, "recovery_codes": codes}, 201)


class PasskeyView(AuthView):
    """A passkey of the account."""

    @extend_schema(
        operation_id="auth_passkey_remove",
        request=ConfirmationSerializer,
        responses={200: Done, **error_responses(400, 401, 403, 404, 429)},
    )
    def delete(self, request: Request, id: UUID) -> Response:
        """Remove it. The body confirms that it is the user."""
        require_confirmation(self, request)
        second_factors.remove_passkey(user=self.me, passkey_id=id)
        return Response({"ok": True})


class RecoveryCodesView(AuthView):
    """Ten new recovery codes, which replace those before. The body confirms that it is the user."""

    serializer_class = ConfirmationSerializer

    @extend_schema(responses={200: RecoveryCodesSerializer, **error_responses(400, 401, 403, 409, 429)})
    def post(self, request: Request) -> Response:
        require_confirmation(self, request)
        return uncached({"recovery_codes": second_factors.new_recovery_codes(user=self.me)})
