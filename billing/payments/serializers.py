"""REST serializers of payments."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from adiuva.accounts.models import PlanName


class CheckoutSerializer(serializers.Serializer[Any]):
    tier = serializers.ChoiceField(
        choices=[choice for choice in PlanName.choices if choice[0] != PlanName.FREE]
    )
    seats = serializers.IntegerField(
        min_value=1, default=1, help_text="Of the team's plan; 1 for the others."
    )


class CheckoutAddressSerializer(serializers.Serializer[Any]):
    checkout_url = serializers.URLField(
        help_text="Open it in the user's browser. With a subscription it is the page that confirms the change."
    )


class PortalAddressSerializer(serializers.Serializer[Any]):
    portal_url = serializers.URLField(help_text="Stripe's page for cards, invoices, changes and cancels.")
