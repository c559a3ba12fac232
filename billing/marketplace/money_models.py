"""Plugins that were bought, and the payments to developers. These rows stay when their people are deleted."""

from __future__ import annotations

import uuid
from typing import Final, Self

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

from billing.marketplace.models import Developer, Plugin
from billing.payments.copies import Copied


class PluginPurchaseQuerySet(models.QuerySet["PluginPurchase"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def owning(self) -> Self:
        """Return purchases that give their buyer the plugin."""
        return self.filter(state__in=PluginPurchase.OWNING)

    def to_take_back(self) -> Self:
        """Return purchases whose developer has more than is due, except those known as debts."""
        return self.filter(settled_cents__gt=F("due_cents"), debt_since=None)

    def to_send(self) -> Self:
        """Return purchases whose developer is due more, after the hold and while nobody disputes them."""
        return self.filter(
            settled_cents__lt=F("due_cents"), state=PluginPurchase.State.PAID, transfer_after__lte=Now()
        )

    def to_settle(self) -> Self:
        """Return purchases to send or take back, and those with a debt."""
        return self.to_take_back() | self.to_send() | self.exclude(debt_since=None)

    def in_debt(self) -> Self:
        return self.filter(settled_cents__gt=F("due_cents")).exclude(debt_since=None)


class PluginPurchase(Copied):
    """A plugin that was bought: a copy of Stripe's facts about its payment, and the developer's part.

    `due_cents` is what the developer is to have, and `settled_cents` what they have or is on its way: where the two
    differ, `payouts` sends or takes back.
    """

    class State(models.TextChoices):
        OPEN = "open", "not paid yet"
        PAID = "paid"
        REFUNDED = "refunded"
        DISPUTED = "disputed"
        LOST = "lost", "the dispute was lost"

    OWNING: Final = (State.PAID, State.DISPUTED)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+", db_index=False
    )
    plugin = models.ForeignKey(Plugin, models.PROTECT, related_name="purchases")
    developer = models.ForeignKey(
        Developer, models.PROTECT, related_name="sales", help_text="Who owned it when it was sold."
    )
    total_cents = models.PositiveIntegerField(help_text="The price, with tax.")
    tax_cents = models.PositiveIntegerField(default=0)
    currency = models.CharField(max_length=3, default="eur")
    session = models.CharField(max_length=255, unique=True, null=True, editable=False)
    payment_intent = models.CharField(max_length=255, unique=True, null=True, editable=False)
    charge = models.CharField(max_length=255, blank=True, db_index=True, editable=False)
    state = models.CharField(max_length=8, choices=State, default=State.OPEN)
    refunded_cents = models.PositiveIntegerField(default=0)
    lost_cents = models.PositiveIntegerField(default=0, help_text="By disputes.")
    due_cents = models.PositiveIntegerField(
        default=0, help_text="The developer's share of what was not given back."
    )
    settled_cents = models.PositiveIntegerField(
        default=0, help_text="What of it the developer has, or is on its way to them."
    )
    debt_since = models.DateTimeField(
        null=True, help_text="The developer has more than is due, and it could not be taken back."
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    paid_at = models.DateTimeField(null=True, editable=False)
    transfer_after = models.DateTimeField(
        null=True, help_text="When the hold ends, or a transfer that failed is tried again."
    )

    objects = PluginPurchaseQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                # A refund may fail after the user has begun to buy again, so there may be one beside another.
                fields=["user", "plugin"],
                condition=Q(state="open"),
                name="bought_once",
            ),
            models.CheckConstraint(condition=Q(tax_cents__lte=F("total_cents")), name="purchase_tax"),
            models.CheckConstraint(
                condition=~Q(state__in=["paid", "disputed"]) | Q(paid_at__isnull=False) & ~Q(charge=""),
                name="purchase_paid_by_a_charge",
            ),
            models.CheckConstraint(condition=Q(synced__lte=F("wanted")), name="purchase_synced_as_wanted"),
        ]
        indexes = [
            models.Index(fields=["-created_at"], name="purchases_newest"),
            models.Index(
                fields=["not_before"], condition=Q(wanted__gt=F("synced")), name="purchases_unsynced"
            ),
            models.Index(
                fields=["transfer_after"],
                condition=~Q(settled_cents=F("due_cents")),
                name="purchases_unsettled",
            ),
        ]

    def __str__(self) -> str:
        return f"purchase {self.pk}"

    @property
    def gone_cents(self) -> int:
        """The cents that went back to the buyer."""
        return self.refunded_cents + self.lost_cents


class DeveloperPaymentQuerySet(models.QuerySet["DeveloperPayment"]):
    def counted(self) -> Self:
        """Return payments that are done or may be."""
        return self.filter(state__in=(DeveloperPayment.State.OPEN, DeveloperPayment.State.DONE))


class DeveloperPayment(models.Model):
    """Money of one sale that went to its developer or came back. Stripe's part of it is a job with this id.

    The next sales pay a debt: then the amount kept of one (`kept`) and paid of the other (`repaid`) are two rows of the
    same sum, and Stripe has nothing to do.
    """

    class Kind(models.TextChoices):
        TRANSFER = "transfer", "sent to the developer"
        REVERSAL = "reversal", "taken back of a transfer"
        KEPT = "kept", "kept for a debt"
        REPAID = "repaid", "a debt, repaid by another sale"

    class State(models.TextChoices):
        OPEN = "open", "on its way"
        DONE = "done"
        FAILED = "failed"
        DROPPED = "dropped", "no longer wanted"

    # The sign with which a payment counts in its sale's `settled_cents`.
    SIGNS: Final = {Kind.TRANSFER: 1, Kind.REVERSAL: -1, Kind.KEPT: 1, Kind.REPAID: -1}

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    # No index of its own: the one below begins with it.
    developer = models.ForeignKey(Developer, models.PROTECT, related_name="payments", db_index=False)
    purchase = models.ForeignKey(PluginPurchase, models.PROTECT, related_name="payments")
    kind = models.CharField(max_length=8, choices=Kind)
    cents = models.PositiveIntegerField()
    currency = models.CharField(max_length=3)
    transfer = models.ForeignKey(
        "self", models.PROTECT, null=True, related_name="reversals", help_text="Of which it is taken back."
    )
    state = models.CharField(max_length=7, choices=State, default=State.OPEN)
    stripe_id = models.CharField(max_length=255, blank=True)
    error = models.CharField(max_length=100, blank=True, help_text="Why it failed.")
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    done_at = models.DateTimeField(null=True, editable=False)

    objects = DeveloperPaymentQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.CheckConstraint(condition=Q(cents__gt=0), name="payment_of_something"),
            models.CheckConstraint(
                condition=Q(kind="reversal", transfer__isnull=False)
                | ~Q(kind="reversal") & Q(transfer__isnull=True),
                name="payment_reverses_a_transfer",
            ),
        ]
        indexes = [
            models.Index(fields=["developer", "-created_at"], name="payments_of_developer"),
            models.Index(fields=["-created_at"], name="payments_newest"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}"
