"""Serializers of connections. Tokens are in none of them."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext
from rest_framework import serializers

from adiuva.core.rest import Done
from integrations.models import Connection, Health, Provider, Reason


class CompletionSerializer(serializers.Serializer[Any]):
    completion = serializers.CharField(
        max_length=200,
        help_text="Of the link `…://oauth/{provider}?status=returned&completion=…` to the app.",
    )


class ConnectionSerializer(serializers.ModelSerializer[Connection]):
    provider = serializers.ChoiceField(choices=Provider.choices)
    account = serializers.CharField(
        source="address_or_blank", help_text="The account's address at the provider."
    )
    scopes = serializers.ListField(child=serializers.CharField(), help_text="What the provider granted.")
    health = serializers.ChoiceField(
        choices=Health.choices, help_text="`needs_reauth`: connect the account again."
    )
    reason = serializers.ChoiceField(
        choices=Reason.choices, allow_blank=True, help_text="Why it needs that; blank while all is well."
    )
    message = serializers.SerializerMethodField(help_text="The reason in words.")

    class Meta:
        model = Connection
        fields = [
            "id",
            "provider",
            "account",
            "scopes",
            "health",
            "reason",
            "message",
            "last_used_at",
            "refreshed_at",
            "expires_at",
            "connected_at",
            "created_at",
        ]
        read_only_fields = fields
        extra_kwargs = {
            "expires_at": {"help_text": "Of the access token, which is refreshed by itself."},
            "connected_at": {"help_text": "When the user last gave consent."},
        }

    def get_message(self, row: Connection) -> str:
        return gettext(row.get_reason_display()) if row.reason else ""


class AuthorizeSerializer(serializers.Serializer[Any]):
    """The query of an authorization."""

    connection = serializers.UUIDField(
        required=False, help_text="One to be connected again; the provider is told which account that is."
    )


class AuthorizationSerializer(serializers.Serializer[Any]):
    authorization_url = serializers.CharField(
        help_text="To be opened in the user's own browser, once, within ten minutes."
    )


class RefreshConnectionSerializer(serializers.Serializer[Any]):
    connection = serializers.UUIDField(
        required=False, help_text="Which; may be left out where there is one of this provider."
    )


class PartingSerializer(Done):
    revoked = serializers.BooleanField(help_text="Whether the provider took the permission back.")
    message = serializers.CharField(help_text="What happened, and what is left to do where it did not.")
