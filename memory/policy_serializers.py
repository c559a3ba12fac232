"""REST serializers of memory's policy and of its receipts."""

from __future__ import annotations

import re
from typing import Any

from django.utils.translation import gettext
from rest_framework import serializers

from adiuva.core.serializer_fields import LinesField
from memory.models import Receipt, Tier

_PROVIDER = re.compile(r"[a-z0-9](?:[a-z0-9._:-]{0,253}[a-z0-9])?")


class ProvidersField(LinesField):
    """Names of model providers: a LiteLLM provider such as "openai", or the host of an endpoint."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            child=serializers.CharField(max_length=255),
            max_length=20,
            allow_null=True,
            required=False,
            **options,
        )

    def from_lines(self, lines: list[str]) -> list[str] | None:
        """Read a form's lines: an empty box lets any provider read the tier, and the word "none" lets no provider."""
        return [line for line in lines if line != "none"] if lines else None

    def to_lines(self, value: Any) -> list[str]:
        return ["none"] if value == [] else value or []

    def to_internal_value(self, data: Any) -> list[str]:
        names = [name.lower() for name in super().to_internal_value(data)]
        if any(not _PROVIDER.fullmatch(name) for name in names):
            raise serializers.ValidationError(gettext("Must be the name of a provider, or a host."))
        return names


class TiersSerializer(serializers.Serializer[Any]):
    """The providers that may read each tier. null: any provider; an empty list: none."""

    core = ProvidersField()
    associative = ProvidersField()
    episodic = ProvidersField()
    proactive = ProvidersField()


class ProvidersSerializer(serializers.Serializer[Any]):
    chat = serializers.CharField(allow_null=True)
    embedding = serializers.CharField(
        allow_null=True, help_text="null: vectors are computed on this server, and nothing is sent elsewhere."
    )


class PolicySerializer(serializers.Serializer[Any]):
    enabled = serializers.BooleanField(
        help_text="If off, nothing is recalled and nothing new is remembered. Existing entries stay, and you can read "
        "and forget them; recent messages that were not read for facts yet are dropped."
    )
    tiers = TiersSerializer(
        help_text="Which model providers may read which tier. You can always read all tiers yourself."
    )
    providers = ProvidersSerializer(
        read_only=True, help_text="The model providers that this server is configured to use."
    )


class ReceiptSerializer(serializers.ModelSerializer[Receipt]):
    purpose = serializers.ChoiceField(choices=Receipt.Purpose.choices)
    entries = serializers.ListField(
        child=serializers.UUIDField(), help_text="Ids of the entries that were sent."
    )
    withheld = serializers.ListField(
        child=serializers.ChoiceField(choices=Tier.choices), help_text="Tiers that your policy withheld."
    )

    class Meta:
        model = Receipt
        fields = [
            "id",
            "purpose",
            "turn_id",
            "conversation_id",
            "provider",
            "model",
            "entries",
            "withheld",
            "at",
        ]
        read_only_fields = fields


class ReceiptQuerySerializer(serializers.Serializer[Any]):
    turn_id = serializers.UUIDField(required=False, help_text="Only receipts of this turn.")
    conversation_id = serializers.UUIDField(required=False, help_text="Only receipts of this conversation.")
    purpose = serializers.ChoiceField(choices=Receipt.Purpose.choices, required=False)
