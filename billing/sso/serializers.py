"""REST serializers of single sign-on. None returns a provider's secret."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from adiuva.accounts.serializers import AddressField, ConfirmationSerializer


class BeginSerializer(serializers.Serializer[Any]):
    email = AddressField()
    challenge = serializers.CharField(
        min_length=43,
        max_length=43,
        help_text="The S256 of a verifier that the app keeps for the last step (RFC 7636).",
    )


class BegunSerializer(serializers.Serializer[Any]):
    authorization_url = serializers.CharField(help_text="Open it in the user's browser, within ten minutes.")


class FinishSerializer(serializers.Serializer[Any]):
    code = serializers.CharField(max_length=200, help_text="Of the link back to the app.")
    verifier = serializers.CharField(min_length=43, max_length=128)


class DomainSerializer(serializers.Serializer[Any]):
    id = serializers.UUIDField(read_only=True)
    name = serializers.CharField(max_length=253)
    proven_at = serializers.DateTimeField(read_only=True, allow_null=True)
    missing_since = serializers.DateTimeField(
        read_only=True,
        allow_null=True,
        help_text="Since when the record of a proven domain is gone; two weeks later it is proven no longer.",
    )
    record_name = serializers.CharField(read_only=True, help_text="Where a TXT record is to be.")
    record_value = serializers.CharField(read_only=True, help_text="What it is to hold.")


class SsoSerializer(serializers.Serializer[Any]):
    issuer = serializers.CharField()
    client_id = serializers.CharField()
    redirect_uri = serializers.CharField(help_text="To be registered at the provider exactly as it is.")
    is_required = serializers.BooleanField(help_text="Whether members of the domains sign in this way alone.")
    worked_at = serializers.DateTimeField(allow_null=True, help_text="When somebody signed in this way last.")
    domains = DomainSerializer(many=True)


class SetSsoSerializer(ConfirmationSerializer):
    issuer = serializers.CharField(max_length=500)
    client_id = serializers.CharField(max_length=255)
    secret = serializers.CharField(
        max_length=255,
        required=False,
        default="",
        allow_blank=True,
        write_only=True,
        trim_whitespace=False,
        help_text="Left out, the present one stays.",
        style={"input_type": "password"},
    )


class RequireSsoSerializer(ConfirmationSerializer):
    is_required = serializers.BooleanField()
