"""REST serializers of plans, and of an account's plan and use."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from adiuva.accounts import serializers as accounts
from adiuva.accounts.models import PlanName, User
from billing import entitlements
from billing.models import Plan, Subscription

SUBSCRIPTION_STATES = ["none", *Subscription.Status.values]


class PlanLimitsSerializer(serializers.Serializer[Any]):
    """The limits of a plan. Null is no limit."""

    agents = serializers.IntegerField(allow_null=True, help_text="Agents in all.")
    agents_enabled = serializers.IntegerField(allow_null=True, help_text="Enabled agents.")
    providers = serializers.IntegerField(allow_null=True, help_text="Providers with a connected account.")
    storage_bytes = serializers.IntegerField(allow_null=True, help_text="Records that the server keeps.")
    backup_bytes = serializers.IntegerField(allow_null=True, help_text="Backups that the server keeps.")
    vectors = serializers.IntegerField(allow_null=True, help_text="Vectors that the server keeps.")
    plugins = serializers.BooleanField(help_text="Whether plugins can be installed.")
    sso = serializers.BooleanField(help_text="Whether a team can sign in with its own provider.")
    requests_per_minute = serializers.IntegerField(allow_null=True)


class PlanUsageSerializer(serializers.Serializer[Any]):
    """The account's use of the features that its plan limits."""

    agents = serializers.IntegerField()
    agents_enabled = serializers.IntegerField(help_text="Enabled ones, without those that the plan holds.")
    providers = serializers.IntegerField()
    storage_bytes = serializers.IntegerField()
    backup_bytes = serializers.IntegerField()
    vectors = serializers.IntegerField()


class PlanSerializer(serializers.ModelSerializer[Plan]):
    name = serializers.CharField(source="get_tier_display")
    limits = serializers.SerializerMethodField()

    class Meta:
        model = Plan
        fields = ["tier", "name", "price_cents", "currency", "per_seat", "limits"]
        read_only_fields = fields

    @extend_schema_field(PlanLimitsSerializer)
    def get_limits(self, plan: Plan) -> dict[str, Any]:
        return entitlements.plan_limits(plan)


class SubscriptionSerializer(serializers.Serializer[Any]):
    """The plan of an account, its origin, and its use."""

    tier = serializers.ChoiceField(choices=PlanName.choices)
    status = serializers.ChoiceField(
        choices=SUBSCRIPTION_STATES, help_text="Of the payment, in Stripe's words; `none` if nothing is paid."
    )
    seats = serializers.IntegerField(allow_null=True)
    period_end = serializers.DateTimeField(allow_null=True, help_text="Until when it is paid.")
    cancel_at_period_end = serializers.BooleanField()
    cancelling = serializers.BooleanField(
        help_text="A cancel was asked for, and the payment service does not know of it yet."
    )
    pending_tier = serializers.ChoiceField(
        choices=PlanName.choices, allow_null=True, help_text="The plan from the next period on."
    )
    payment_failed_at = serializers.DateTimeField(allow_null=True)
    payment_url = serializers.URLField(
        allow_null=True,
        help_text="The page on which an open invoice is paid, or confirmed at the bank; null if none is open.",
    )
    given_until = serializers.DateTimeField(
        allow_null=True, help_text="When the plan ends that staff gave; null if none does."
    )
    limits = PlanLimitsSerializer()
    usage = PlanUsageSerializer()
    over = serializers.ListField(
        child=serializers.ChoiceField(choices=entitlements.FEATURES),
        help_text="Of what the account has more than its plan allows. Nothing is deleted for that.",
    )


class MeSerializer(accounts.MeSerializer):
    limits = serializers.SerializerMethodField()
    usage = serializers.SerializerMethodField()

    class Meta(accounts.MeSerializer.Meta):
        fields = [*accounts.MeSerializer.Meta.fields, "limits", "usage"]

    @extend_schema_field(PlanLimitsSerializer)
    def get_limits(self, user: User) -> dict[str, Any]:
        return entitlements.limits_of(user.tier)

    @extend_schema_field(PlanUsageSerializer)
    def get_usage(self, user: User) -> dict[str, int]:
        return {str(feature): used for feature, used in entitlements.usage_of(user.pk).items()}
