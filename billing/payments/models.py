"""Customers, subscriptions, events and jobs. Rows of money stay when their user is deleted, without the user."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Final, Self

from django.conf import settings
from django.db import models
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Now

from adiuva.accounts.models import PlanName
from adiuva.core.leases import Leased
from billing.payments.copies import Copied

# The longest time that a plan stays after a failed payment while Stripe tries again.
GRACE: Final = dt.timedelta(days=14)


class Customer(models.Model):
    """A user as Stripe's customer."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="stripe_customer"
    )
    stripe_id = models.CharField(max_length=255, unique=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    def __str__(self) -> str:
        return self.stripe_id


class SubscriptionQuerySet(models.QuerySet["Subscription"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def live(self) -> Self:
        return self.filter(status__in=Subscription.LIVE)

    def giving(self) -> Self:
        """Return subscriptions that give their plan, by the rule of `billing.tiers`."""
        in_grace = Q(status=Subscription.Status.PAST_DUE, past_due_since__gt=Now() - GRACE)
        lost = Dispute.objects.filter(subscription_id=OuterRef("stripe_id"), status="lost", released=False)
        return self.filter(Q(status__in=("trialing", "active")) | in_grace, ~Exists(lost), doubled=False)


class Subscription(Copied):
    """A copy of Stripe's facts about a subscription, as of `synced_at`."""

    class Status(models.TextChoices):
        """Stripe's own statuses, and `unknown` before the first copy."""

        UNKNOWN = "unknown"
        INCOMPLETE = "incomplete"
        INCOMPLETE_EXPIRED = "incomplete_expired"
        TRIALING = "trialing"
        ACTIVE = "active"
        PAST_DUE = "past_due"
        UNPAID = "unpaid"
        PAUSED = "paused"
        CANCELED = "canceled"

    LIVE = (Status.INCOMPLETE, Status.TRIALING, Status.ACTIVE, Status.PAST_DUE)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    stripe_id = models.CharField(max_length=255, unique=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="subscriptions", db_index=False
    )
    customer = models.ForeignKey(Customer, models.PROTECT, null=True, related_name="subscriptions")
    tier = models.CharField("plan", max_length=8, choices=PlanName, default=PlanName.FREE)
    quantity = models.PositiveIntegerField(default=1)
    status = models.CharField(max_length=18, choices=Status, default=Status.UNKNOWN)
    period_end = models.DateTimeField(null=True)
    cancel_at_period_end = models.BooleanField(default=False)
    pending_tier = models.CharField(max_length=8, choices=PlanName, blank=True)
    past_due_since = models.DateTimeField(null=True)
    payment_url = models.CharField(
        max_length=2048, blank=True, help_text="Stripe's page on which an open invoice is paid or confirmed."
    )
    started_at = models.DateTimeField(null=True)
    # The user has an older live one: this one gives nothing, and staff decide about it.
    doubled = models.BooleanField(default=False)
    synced_at = models.DateTimeField(null=True)

    objects = SubscriptionQuerySet.as_manager()

    class Meta:
        ordering = ["-started_at", "-id"]
        indexes = [
            models.Index(fields=["user"], name="subscriptions_of_user"),
            models.Index(
                fields=["not_before"], condition=Q(wanted__gt=F("synced")), name="subscriptions_unsynced"
            ),
            models.Index(
                fields=["past_due_since"], condition=Q(status="past_due"), name="subscriptions_in_grace"
            ),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["user"],
                condition=Q(status__in=["incomplete", "trialing", "active", "past_due"], doubled=False),
                name="subscription_one_live",
            ),
            models.CheckConstraint(condition=Q(tier__in=PlanName.values), name="subscription_plan_known"),
            models.CheckConstraint(
                condition=Q(synced__lte=F("wanted")), name="subscription_synced_as_wanted"
            ),
        ]

    def __str__(self) -> str:
        return self.stripe_id


class Event(models.Model):
    """An event that Stripe sent, once. Only ids of its content are kept: it names people."""

    class State(models.TextChoices):
        NEW = "new"
        DONE = "done"
        IGNORED = "ignored"
        REFUSED = "refused", "refused: it cannot be followed"

    stripe_id = models.CharField(max_length=255, primary_key=True)
    type = models.CharField(max_length=100)
    object_id = models.CharField(max_length=255, blank=True)
    subscription_id = models.CharField(
        max_length=255, blank=True, help_text="The id at Stripe of the subscription that it is about."
    )
    payment_intent = models.CharField(
        max_length=255, blank=True, help_text="The id at Stripe of the payment that it is about."
    )
    api_version = models.CharField(max_length=40, blank=True)
    livemode = models.BooleanField()
    created = models.DateTimeField(help_text="By Stripe's clock, in whole seconds.")
    received_at = models.DateTimeField(db_default=Now(), editable=False)
    state = models.CharField(max_length=7, choices=State, default=State.NEW)
    error = models.CharField(
        max_length=100, blank=True, help_text="Why it was refused: our code, or Stripe's for what it names."
    )

    class Meta:
        ordering = ["-received_at"]
        indexes = [
            models.Index(fields=["received_at"], condition=Q(state="new"), name="events_new"),
            models.Index(fields=["-received_at"], name="events_newest"),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.stripe_id}"


class StripeJobQuerySet(models.QuerySet["StripeJob"]):
    def due(self) -> Self:
        return self.filter(state__in=StripeJob.OPEN, not_before__lte=Now())


class StripeJob(Leased):
    """An action for Stripe to do, once. Its key at Stripe is made of this row and of `attempt`.

    There is one open job of a kind and subject at a time. `user_id` is no reference, since the job that ends an
    account's payments outlives the account.
    """

    class Kind(models.TextChoices):
        CUSTOMER = "customer", "make a customer"
        CHECKOUT = "checkout", "open a checkout"
        CANCEL = "cancel", "cancel at the period's end"
        RESUME = "resume", "take a cancel back"
        SEATS = "seats", "change the number of seats"
        REFUND = "refund", "refund a charge"
        END = "end", "end a subscription at once"
        DELETE_CUSTOMER = "delete_customer", "delete a customer"
        ACCOUNT = "account", "open a developer's account"
        PURCHASE = "purchase", "open a checkout of a plugin"
        TRANSFER = "transfer", "send a developer their share"
        REVERSAL = "reversal", "take a transfer back"

    class State(models.TextChoices):
        WANTED = "wanted"
        UNKNOWN = "unknown", "sent, outcome unknown"
        DONE = "done"
        FAILED = "failed"
        DROPPED = "dropped", "no longer wanted"

    OPEN = (State.WANTED, State.UNKNOWN)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=15, choices=Kind)
    subject = models.CharField(max_length=255, help_text="The id of what it is about, ours or Stripe's.")
    user_id = models.UUIDField(null=True)
    detail = models.JSONField(default=dict, help_text="Plan and seats; nothing about people.")
    state = models.CharField(max_length=8, choices=State, default=State.WANTED)
    attempt = models.PositiveSmallIntegerField(
        default=1, help_text="Raised when it is known that the last one did nothing."
    )
    tries = models.PositiveSmallIntegerField(default=0, editable=False)
    first_sent_at = models.DateTimeField(null=True, editable=False, help_text="Of this attempt.")
    stripe_id = models.CharField(max_length=255, blank=True)
    error = models.CharField(max_length=100, blank=True, help_text="The code of the last failure.")
    not_before = models.DateTimeField(db_default=Now(), editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = StripeJobQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            models.Index(
                fields=["not_before"], condition=Q(state__in=["wanted", "unknown"]), name="stripe_jobs_due"
            ),
            models.Index(fields=["kind", "subject", "-created_at"], name="stripe_jobs_of_subject"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "subject"],
                condition=Q(state__in=["wanted", "unknown"]),
                name="stripe_job_one_open",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}"

    @property
    def key(self) -> str:
        return f"adiuva:{self.pk}:{self.attempt}"


class Dispute(Copied):
    """A payment that a card's holder takes back through their bank: a copy of Stripe's facts.

    While it is open the plan stays. A lost one takes the plan away, and ends the subscription, unless staff decide
    otherwise (`released`).
    """

    # The order of a dispute's states; a copy never goes back.
    STATES: Final = (
        ("warning_needs_response", "warning_under_review", "needs_response", "under_review"),
        ("warning_closed", "prevented", "won", "lost"),
    )

    stripe_id = models.CharField(max_length=255, primary_key=True)
    charge_id = models.CharField(max_length=255, blank=True, db_index=True)
    subscription_id = models.CharField(max_length=255, blank=True, db_index=True)
    customer_id = models.CharField(max_length=255, blank=True)
    cents = models.PositiveBigIntegerField(default=0)
    currency = models.CharField(max_length=3, blank=True)
    reason = models.CharField(max_length=60, blank=True)
    status = models.CharField(max_length=30, default="needs_response")
    opened_at = models.DateTimeField(null=True)
    evidence_due_by = models.DateTimeField(null=True, help_text="Until when Stripe takes evidence.")
    released = models.BooleanField(default=False, help_text="It was lost, and staff gave the plan back.")

    class Meta:
        ordering = ["-opened_at"]
        indexes = [models.Index(fields=["-opened_at"], name="disputes_newest")]

    def __str__(self) -> str:
        return self.stripe_id

    @property
    def is_closed(self) -> bool:
        return self.status in self.STATES[1]


class LedgerEntry(models.Model):
    """One movement of the money that Stripe keeps for us. Its lines sum to zero: a trigger refuses others.

    Neither an entry nor a line is ever changed or deleted: a trigger refuses that, too. They name nobody.
    """

    source = models.CharField(max_length=255, primary_key=True, help_text="Stripe's id of the movement.")
    kind = models.CharField(max_length=60, help_text="In Stripe's words.")
    cents = models.BigIntegerField(help_text="Before the fee; less than zero if it left.")
    currency = models.CharField(max_length=3)
    charge_id = models.CharField(max_length=255, blank=True, db_index=True)
    invoice_id = models.CharField(max_length=255, blank=True, db_index=True)
    subscription_id = models.CharField(max_length=255, blank=True, db_index=True)
    customer_id = models.CharField(max_length=255, blank=True, db_index=True)
    happened_at = models.DateTimeField()
    recorded_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ["-happened_at", "-source"]
        verbose_name_plural = "ledger entries"
        indexes = [models.Index(fields=["-happened_at", "-source"], name="ledger_newest")]

    def __str__(self) -> str:
        return f"{self.kind} {self.source}"


class LedgerLine(models.Model):
    """A part of an entry, by account. Money that came to the account is positive, money that left it negative."""

    class Account(models.TextChoices):
        STRIPE = "stripe", "what Stripe keeps for us"
        FEES = "fees", "what Stripe took"
        TAX = "tax", "owed to the state"
        SALES = "sales"
        SHARES = "shares", "developers' of their plugins' sales"
        REFUNDS = "refunds"
        DISPUTES = "disputes"
        PAYOUTS = "payouts", "paid out to our bank"
        TRANSFERS = "transfers", "to connected accounts"
        OTHER = "other"

    entry = models.ForeignKey(LedgerEntry, models.PROTECT, related_name="lines", db_index=False)
    account = models.CharField(max_length=9, choices=Account)
    cents = models.BigIntegerField()
    currency = models.CharField(max_length=3)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["entry", "account"], name="ledger_line_once")]

    def __str__(self) -> str:
        return f"{self.account} {self.cents}"
