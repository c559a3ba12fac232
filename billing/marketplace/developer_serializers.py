"""REST forms of developers: their names, their earnings, and the transfer of a plugin."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from billing.marketplace.models import Developer
from billing.marketplace.money_models import DeveloperPayment
from billing.marketplace.user_models import PluginTransfer

ACCOUNT_STATES = ["none", "pending", "ready", "restricted"]


class BecomeDeveloperSerializer(serializers.Serializer[Any]):
    handle = serializers.CharField(
        max_length=39, help_text="Small letters, digits and hyphens. It stands in the catalogue, and stays."
    )
    name = serializers.CharField(max_length=100, help_text="As people read it.")


class DeveloperSerializer(serializers.Serializer[Any]):
    """You as a developer."""

    handle = serializers.CharField()
    name = serializers.CharField()
    state = serializers.ChoiceField(choices=Developer.State.values)
    account = serializers.ChoiceField(
        choices=ACCOUNT_STATES,
        help_text="Your account at Stripe. With `pending` you sell already, and your shares wait; `restricted`: Stripe "
        "has to know more of you, and nothing is sold until then.",
    )
    country = serializers.CharField(allow_blank=True, help_text="As Stripe knows it.")


class OnboardingSerializer(serializers.Serializer[Any]):
    url = serializers.URLField(
        help_text="Stripe's page: what it asks of you, or once that is done, your payouts. It works once, for minutes."
    )


class EarningSerializer(serializers.Serializer[Any]):
    """Sales in one currency. All sums are cents."""

    currency = serializers.CharField()
    sales = serializers.IntegerField(help_text="How many.")
    gross = serializers.IntegerField(help_text="What buyers paid, with tax.")
    tax = serializers.IntegerField()
    refunded = serializers.IntegerField(help_text="What went back to buyers, with tax.")
    share = serializers.IntegerField(help_text="Yours: 70 % without tax of what did not go back.")
    settled = serializers.IntegerField(help_text="What of it was sent to you.")
    on_hold = serializers.IntegerField(help_text="What waits for 14 days, or for a dispute.")
    waiting = serializers.IntegerField(help_text="What is sent as soon as Stripe pays you out.")
    debt = serializers.IntegerField(help_text="What you have too much; your next sales repay it.")


class DeveloperPaymentSerializer(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    kind = serializers.ChoiceField(choices=DeveloperPayment.Kind.choices)
    state = serializers.ChoiceField(choices=DeveloperPayment.State.choices)
    plugin = serializers.CharField(help_text="Its slug.")
    cents = serializers.IntegerField()
    currency = serializers.CharField()
    at = serializers.DateTimeField()


class EarningsSerializer(serializers.Serializer[Any]):
    period = serializers.CharField(allow_null=True)
    earnings = EarningSerializer(many=True)
    payments = DeveloperPaymentSerializer(many=True, help_text="Of any time, newest first; at most 100.")


class GivePluginSerializer(serializers.Serializer[Any]):
    handle = serializers.CharField(max_length=50, help_text="Of the developer who is to have it.")


class PluginTransferSerializer(serializers.Serializer[Any]):
    """A plugin on its way to another developer."""

    id = serializers.UUIDField()
    plugin = serializers.CharField(help_text="Its slug.")
    giver = serializers.CharField()
    receiver = serializers.CharField()
    state = serializers.ChoiceField(choices=PluginTransfer.State.choices)
    due_at = serializers.DateTimeField(
        allow_null=True, help_text="When its hold of 7 days ends, once accepted."
    )
