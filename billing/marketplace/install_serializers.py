"""REST forms of installing plugins."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from billing.marketplace.manifest import PluginKind
from billing.marketplace.permissions import PERMISSIONS

KINDS = [(kind.value, kind.value) for kind in PluginKind]


class InstallSerializer(serializers.Serializer[Any]):
    permissions = serializers.ListField(
        child=serializers.ChoiceField(choices=sorted(PERMISSIONS)),
        required=False,
        max_length=len(PERMISSIONS),
        help_text="What the user was shown and has agreed to. Left out, a first installation agrees to what the "
        "catalogue shows, and an update to nothing more than before.",
    )


class InstalledSerializer(serializers.Serializer[Any]):
    """The package's address, and the data that a client needs to check it before use."""

    ok = serializers.BooleanField()
    download_url = serializers.URLField(help_text="Good for 5 minutes, without a token of its own.")
    version = serializers.CharField()
    permissions = serializers.ListField(child=serializers.CharField())
    sha256 = serializers.CharField()
    size = serializers.IntegerField(help_text="bytes")
    signature = serializers.CharField(help_text="Ed25519, in base64, over what was reviewed.")
    key_id = serializers.CharField()
    reviewed_at = serializers.DateTimeField()


class PaymentRequiredSerializer(serializers.Serializer[Any]):
    code = serializers.CharField(help_text="`payment_required`.")
    message = serializers.CharField()
    checkout_url = serializers.URLField(help_text="Open it in the user's browser.")
    price_cents = serializers.IntegerField()
    currency = serializers.CharField()


class UpdateSerializer(serializers.Serializer[Any]):
    version = serializers.CharField()
    permissions = serializers.ListField(child=serializers.CharField())
    new_permissions = serializers.ListField(
        child=serializers.CharField(), help_text="Those that the user has to agree to first."
    )


class InstalledPluginSerializer(serializers.Serializer[Any]):
    """A plugin that the user has."""

    id = serializers.UUIDField()
    slug = serializers.CharField()
    name = serializers.CharField()
    kind = serializers.ChoiceField(choices=KINDS)
    version = serializers.CharField()
    permissions = serializers.ListField(child=serializers.CharField(), help_text="What the user has granted.")
    installed_at = serializers.DateTimeField()
    revoked = serializers.CharField(
        allow_null=True, help_text="Why this version is not to be used; null if nothing is wrong with it."
    )
    refunded = serializers.BooleanField(
        help_text="Its price was given back: it is not to be used until it is bought again."
    )
    update = UpdateSerializer(allow_null=True)  # type: ignore[assignment]  # the wire's name; DRF allows it
