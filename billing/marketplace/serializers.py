"""REST serializers of the marketplace."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from billing.marketplace.catalogue import MAX_LIMIT, SORTS
from billing.marketplace.manifest import PluginKind
from billing.marketplace.models import Plugin, PluginVersion
from billing.marketplace.user_models import PluginReport

PLUGIN_KINDS = [kind.value for kind in PluginKind]
PLUGIN_SORTS = list(SORTS)


class PublisherSerializer(serializers.Serializer[Any]):
    handle = serializers.CharField()
    name = serializers.CharField(allow_blank=True)


class PluginSerializer(serializers.Serializer[Any]):
    """A plugin as lists show it."""

    id = serializers.UUIDField()
    slug = serializers.CharField(help_text="The id in its manifest, and in what is signed.")
    name = serializers.CharField()
    summary = serializers.CharField(allow_blank=True)
    kind = serializers.CharField(allow_blank=True, help_text=", ".join(PLUGIN_KINDS))
    category = serializers.ChoiceField(choices=Plugin.Category.choices)
    developer = PublisherSerializer()
    version = serializers.CharField(allow_null=True, help_text="The one that is installed now.")
    permissions = serializers.ListField(child=serializers.CharField())
    size = serializers.IntegerField(allow_null=True, help_text="Of the package, in bytes.")
    price_cents = serializers.IntegerField()
    currency = serializers.CharField()
    rating = serializers.FloatField(allow_null=True, help_text="The average, 1 to 5; null without ratings.")
    ratings = serializers.IntegerField(help_text="How many.")
    installs = serializers.IntegerField(help_text="How many users have ever installed it.")
    listed_at = serializers.DateTimeField(allow_null=True)
    updated_at = serializers.DateTimeField(allow_null=True)


class PluginListSerializer(serializers.Serializer[Any]):
    plugins = PluginSerializer(many=True)
    total = serializers.IntegerField()
    page = serializers.IntegerField()


class PluginQuerySerializer(serializers.Serializer[Any]):
    category = serializers.ChoiceField(choices=["", *Plugin.Category.values], default="")
    q = serializers.CharField(max_length=200, default="", allow_blank=True)
    sort = serializers.ChoiceField(choices=PLUGIN_SORTS, default="rating")
    page = serializers.IntegerField(min_value=1, max_value=10_000, default=1)
    limit = serializers.IntegerField(min_value=1, default=50, help_text="Of more than 100, 100 are given.")

    def validate_limit(self, limit: int) -> int:
        return min(limit, MAX_LIMIT)


class ListedVersionSerializer(serializers.Serializer[Any]):
    version = serializers.CharField()
    state = serializers.ChoiceField(choices=["listed", "yanked", "revoked"])
    reason = serializers.CharField(allow_blank=True, help_text="Why it was yanked or revoked.")
    listed_at = serializers.DateTimeField()
    permissions = serializers.ListField(child=serializers.CharField())


class PluginDetailSerializer(PluginSerializer):
    """A plugin with the data that a client needs to show and to check it."""

    state = serializers.ChoiceField(choices=Plugin.State.choices)
    manifest = serializers.DictField(allow_null=True)
    sha256 = serializers.CharField(allow_null=True)
    signature = serializers.CharField(
        allow_null=True, help_text="Ed25519, in base64; docs/plugins.md has of what."
    )
    key_id = serializers.CharField(allow_null=True)
    reviewed_at = serializers.DateTimeField(allow_null=True)
    versions = ListedVersionSerializer(many=True)


class OwnPluginSerializer(PluginSerializer):
    state = serializers.ChoiceField(choices=Plugin.State.choices)


class NewPluginSerializer(serializers.Serializer[Any]):
    slug = serializers.RegexField(
        r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", min_length=3, max_length=50, help_text="The manifest's `id`."
    )
    name = serializers.CharField(max_length=200)
    category = serializers.ChoiceField(choices=Plugin.Category.choices, default="other")
    price_cents = serializers.IntegerField(min_value=0, max_value=100_000, default=0)


class PluginChangeSerializer(serializers.Serializer[Any]):
    category = serializers.ChoiceField(choices=Plugin.Category.choices, required=False)
    price_cents = serializers.IntegerField(min_value=0, max_value=100_000, required=False)
    listed = serializers.BooleanField(
        required=False, help_text="False takes it out of the catalogue; who has it keeps it."
    )


class FindingSerializer(serializers.Serializer[Any]):
    """One problem in a package."""

    check = serializers.CharField()
    severity = serializers.ChoiceField(choices=["blocks", "review"])
    path = serializers.CharField(allow_blank=True)
    line = serializers.IntegerField(help_text="From 1; 0 if it is not a line's.")
    problem = serializers.CharField()


class OwnVersionSerializer(serializers.Serializer[Any]):
    version = serializers.CharField()
    state = serializers.ChoiceField(choices=PluginVersion.State.choices)
    reason = serializers.CharField(allow_blank=True)
    sha256 = serializers.CharField()
    size = serializers.IntegerField()
    permissions = serializers.ListField(child=serializers.CharField())
    created_at = serializers.DateTimeField()
    submitted_at = serializers.DateTimeField(allow_null=True)
    list_at = serializers.DateTimeField(allow_null=True, help_text="When its hold ends.")
    listed_at = serializers.DateTimeField(allow_null=True)
    checks = serializers.DictField(child=serializers.CharField())
    findings = FindingSerializer(many=True)


class SubmitSerializer(serializers.Serializer[Any]):
    notes = serializers.CharField(
        max_length=2000, default="", allow_blank=True, help_text="For who reviews it."
    )


class YankSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(max_length=500, default="", allow_blank=True)


class RatingSerializer(serializers.Serializer[Any]):
    stars = serializers.IntegerField(min_value=1, max_value=5)


class RatedSerializer(serializers.Serializer[Any]):
    rating = serializers.FloatField(allow_null=True)
    ratings = serializers.IntegerField()


class ReportSerializer(serializers.Serializer[Any]):
    reason = serializers.ChoiceField(choices=PluginReport.Reason.choices)
    text = serializers.CharField(max_length=2000, default="", allow_blank=True)


class RevokedSerializer(serializers.Serializer[Any]):
    plugin = serializers.CharField()
    version = serializers.CharField()
    reason = serializers.CharField()


class RevocationStatementSerializer(serializers.Serializer[Any]):
    counter = serializers.IntegerField()
    # Texts already, returned as they were signed.
    issued_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField()
    revoked = RevokedSerializer(many=True)


class RevocationListSerializer(serializers.Serializer[Any]):
    statement = RevocationStatementSerializer()
    signature = serializers.CharField()
    key_id = serializers.CharField()


class SigningKeysSerializer(serializers.Serializer[Any]):
    keys = serializers.DictField(
        child=serializers.CharField(), help_text="Raw Ed25519 public keys, in base64, by id."
    )
