"""manage.py set_up_stripe: make the plans' prices at Stripe, and say which settings are still missing."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from adiuva.core.errors import AdiuvaError
from billing.payments import events_api, prices, stripe_api


class Command(BaseCommand):
    help = (
        "Makes a price at Stripe for each plan that costs something, and writes its id into the plan's row; a plan "
        "whose price changed gets a new one, and who subscribed before keeps theirs. Run it after each change of a "
        "plan's price. It can be run again at any time."
    )

    def handle(self, *_: Any, **__: Any) -> None:
        if not stripe_api.is_on():
            raise CommandError("STRIPE_SECRET_KEY is not set.")
        try:
            for tier, price in prices.make_missing():
                self.stdout.write(f"{tier}: {price}")
        except AdiuvaError as error:
            raise CommandError(f"Stripe: {getattr(error, 'reason', error.message)}") from None
        self.stdout.write(f"Webhook: {settings.PUBLIC_URL}/api/v1/billing/webhook")
        if not settings.STRIPE["webhook_secrets"]:
            self.stdout.write("Make it at Stripe for these events, and set STRIPE_WEBHOOK_SECRETS:")
            self.stdout.write("  " + " ".join(events_api.EVENT_TYPES))
