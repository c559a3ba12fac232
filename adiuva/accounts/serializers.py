"""REST serializers of accounts, sign-in, tokens and second factors."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from adiuva.accounts import addresses
from adiuva.accounts.keys import cipher_for
from adiuva.accounts.models import Passkey, Session, StaffAction, User
from adiuva.accounts.passkeys import Assertion
from adiuva.accounts.services import MAX_PASSWORD_CHARS, save_columns
from adiuva.core.language import said
from adiuva.core.representation import ModelSerializer


class PasswordField(serializers.CharField):
    """A password as it was typed, spaces included."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            max_length=MAX_PASSWORD_CHARS,
            trim_whitespace=False,
            write_only=True,
            style={"input_type": "password"},
            **options,
        )


class AddressField(serializers.EmailField):
    """An e-mail address, as accounts keep it."""

    def __init__(self, **options: Any) -> None:
        help_text = "Upper and lower case are the same, and so are the spellings of an international domain."
        super().__init__(max_length=254, **{"help_text": help_text, **options})

    def to_internal_value(self, data: Any) -> str:
        try:
            return addresses.normalize(super().to_internal_value(data))
        except addresses.AddressInvalid as error:
            raise serializers.ValidationError(said(error.message)) from None


class CredentialsSerializer(serializers.Serializer[Any]):
    email = AddressField()
    password = PasswordField()


class RefreshSerializer(serializers.Serializer[Any]):
    refresh_token = serializers.CharField(help_text="The newest one. It can be used once.")


class TokensSerializer(serializers.Serializer[Any]):
    access_token = serializers.CharField(help_text="For `Authorization: Bearer …`.")
    refresh_token = serializers.CharField(help_text="For /auth/refresh; replaces the one before.")
    expires_at = serializers.IntegerField(help_text="Unix seconds of the access token's end.")


class TicketSerializer(serializers.Serializer[Any]):
    ticket = serializers.CharField(help_text="For `?ticket=` of the device socket, once.")
    expires_at = serializers.IntegerField(help_text="Unix seconds.")


class PasswordChangeSerializer(serializers.Serializer[Any]):
    current_password = PasswordField()
    new_password = PasswordField()


class LinkTokenSerializer(serializers.Serializer[Any]):
    token = serializers.CharField(help_text="The text after `token=` in the link of the mail.")


class AddressSerializer(serializers.Serializer[Any]):
    email = AddressField()


class NewPasswordSerializer(LinkTokenSerializer):
    new_password = PasswordField()


class PasskeyAnswerSerializer(serializers.Serializer[Any]):
    handle = serializers.CharField(max_length=200, help_text="Of the challenge that the browser answers.")
    credential = serializers.DictField(help_text="What `PublicKeyCredential.toJSON()` gives.")

    def to_internal_value(self, data: Any) -> Assertion:
        return Assertion(**super().to_internal_value(data))


class ConfirmationSerializer(serializers.Serializer[Any]):
    """That it is the user: one of these."""

    password = PasswordField(required=False, default="", allow_blank=True)
    passkey = PasskeyAnswerSerializer(
        required=False,
        allow_null=True,
        default=None,
        help_text="An answer to /auth/passkeys/confirm-options.",
    )


class AddressChangeSerializer(ConfirmationSerializer):
    email = AddressField()


class SecondFactorLoginSerializer(serializers.Serializer[Any]):
    """The ticket and one of the rest."""

    ticket = serializers.CharField(
        max_length=500, help_text="The ticket of the answer `second_factor_required`."
    )
    code = serializers.CharField(
        required=False, default="", max_length=20, help_text="The code that the app shows."
    )
    recovery_code = serializers.CharField(required=False, default="", max_length=60)
    passkey = PasskeyAnswerSerializer(required=False, allow_null=True, default=None)


class TicketOrNothingSerializer(serializers.Serializer[Any]):
    ticket = serializers.CharField(
        required=False,
        default="",
        max_length=500,
        help_text="The ticket of the answer `second_factor_required`; none to sign in with a passkey alone.",
    )


class PasskeyOptionsSerializer(serializers.Serializer[Any]):
    handle = serializers.CharField(help_text="Goes back with the browser's answer, within five minutes.")
    options = serializers.DictField(
        help_text="For `PublicKeyCredential.parseRequestOptionsFromJSON` or `parseCreationOptionsFromJSON`."
    )


class TotpCodeSerializer(serializers.Serializer[Any]):
    code = serializers.CharField(max_length=20)


class TotpSerializer(serializers.Serializer[Any]):
    secret = serializers.CharField(help_text="To type into the app.")
    uri = serializers.CharField(help_text="For a QR code that the app reads.")


class RecoveryCodesSerializer(serializers.Serializer[Any]):
    recovery_codes = serializers.ListField(
        child=serializers.CharField(), help_text="Shown this once; none if the account has some."
    )


class NewPasskeySerializer(PasskeyAnswerSerializer):
    name = serializers.CharField(required=False, default="", max_length=60, help_text="Such as: laptop.")

    def to_internal_value(self, data: Any) -> Any:
        found = serializers.Serializer.to_internal_value(self, data)
        return {"name": found.pop("name"), "attestation": Assertion(**found)}


class PasskeySerializer(serializers.ModelSerializer[Passkey]):
    name = serializers.SerializerMethodField()

    class Meta:
        model = Passkey
        fields = ["id", "name", "created_at", "last_used_at"]

    def get_name(self, passkey: Passkey) -> str:
        return Passkey.name.unseal_from(cipher_for(passkey.user_id), passkey)


class PasskeyAddedSerializer(PasskeySerializer):
    recovery_codes = serializers.ListField(child=serializers.CharField(), read_only=True)

    class Meta(PasskeySerializer.Meta):
        fields = [*PasskeySerializer.Meta.fields, "recovery_codes"]


class SecondFactorsSerializer(serializers.Serializer[Any]):
    totp = serializers.BooleanField(help_text="Whether there is an authenticator app.")
    passkeys = PasskeySerializer(many=True)
    recovery_codes_left = serializers.IntegerField()


class MeSerializer(ModelSerializer[User]):
    email_verified = serializers.SerializerMethodField(help_text="Whether the address was confirmed.")
    new_email = serializers.CharField(
        read_only=True, help_text="An address that was asked for and waits to be confirmed, or blank."
    )

    class Meta:
        model = User
        fields = [
            "id",
            "email",
            "email_verified",
            "new_email",
            "tier",
            "timezone",
            "locale",
            "is_staff",
            "created_at",
        ]
        read_only_fields = ["id", "email", "tier", "is_staff", "created_at"]

    def update(self, instance: User, validated_data: Any) -> User:
        for name, value in validated_data.items():
            setattr(instance, name, value)
        save_columns(instance, *validated_data)
        return instance

    def get_email_verified(self, user: User) -> bool:
        return user.email_verified_at is not None


class SessionSerializer(ModelSerializer[Session]):
    current = serializers.SerializerMethodField(help_text="Whether this request comes from it.")

    class Meta:
        model = Session
        fields = ["id", "user_agent", "created_at", "last_used_at", "expires_at", "current"]
        read_only_fields = fields

    def get_current(self, session: Session) -> bool:
        request = self.context["request"]
        return bool(session == (request.auth or request._request.browser_session))


class StaffActionSerializer(serializers.ModelSerializer[StaffAction]):
    class Meta:
        model = StaffAction
        fields = ["id", "kind", "object", "object_id", "at"]
        read_only_fields = fields


class SessionsEndedSerializer(serializers.Serializer[Any]):
    ok = serializers.BooleanField(default=True)
    ended = serializers.IntegerField(help_text="How many devices were signed out.")
