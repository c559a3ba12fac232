"""Plans and the overrides by staff."""

from __future__ import annotations

import uuid
from typing import Self

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

from adiuva.accounts.models import PlanName
from billing.marketplace.models import (
    Developer,
    Plugin,
    PluginCheck,
    PluginReview,
    PluginVersion,
    Revocation,
    RevocationCounter,
)
from billing.marketplace.money_models import DeveloperPayment, PluginPurchase
from billing.marketplace.user_models import (
    PluginInstall,
    PluginRating,
    PluginReport,
    PluginTransfer,
)
from billing.payments.models import Customer, Dispute, Event, LedgerEntry, LedgerLine, StripeJob, Subscription
from billing.sso.models import Domain, Identity, IdentityProvider, SignIn, SsoEvent, SsoSession
from billing.teams.models import Membership, Team

__all__ = [
    "Customer",
    "Developer",
    "DeveloperPayment",
    "Dispute",
    "Domain",
    "Event",
    "Identity",
    "IdentityProvider",
    "LedgerEntry",
    "LedgerLine",
    "Membership",
    "Override",
    "Plan",
    "PlanChange",
    "Plugin",
    "PluginCheck",
    "PluginInstall",
    "PluginPurchase",
    "PluginRating",
    "PluginReport",
    "PluginReview",
    "PluginTransfer",
    "PluginVersion",
    "Revocation",
    "RevocationCounter",
    "SignIn",
    "SsoEvent",
    "SsoSession",
    "StripeJob",
    "Subscription",
    "Team",
    "Use",
]


class Plan(models.Model):
    """The price and the limits of a plan. Staff edit these rows; each process reads them anew every few seconds.

    An empty limit is no limit.
    """

    tier = models.CharField(max_length=8, choices=PlanName, primary_key=True)
    position = models.PositiveSmallIntegerField(
        unique=True, help_text="Which plan is larger: of several, the one with the highest counts."
    )
    price_cents = models.PositiveIntegerField(help_text="a month")
    currency = models.CharField(max_length=3, default="eur")
    per_seat = models.BooleanField(default=False, help_text="The price is for each member of a team.")
    stripe_price_id = models.CharField(max_length=255, unique=True, null=True, blank=True)

    agents = models.PositiveIntegerField(null=True, blank=True, help_text="Agents in all; empty: no limit.")
    agents_enabled = models.PositiveIntegerField(
        null=True, blank=True, help_text="Of these, enabled ones; empty: no limit."
    )
    providers = models.PositiveIntegerField(
        null=True, blank=True, help_text="Providers with a connected account; empty: no limit."
    )
    storage_bytes = models.PositiveBigIntegerField(null=True, blank=True, help_text="Empty: no limit.")
    backup_bytes = models.PositiveBigIntegerField(null=True, blank=True, help_text="Empty: no limit.")
    vectors = models.PositiveBigIntegerField(null=True, blank=True, help_text="Empty: no limit.")
    plugins = models.BooleanField(default=False)
    sso = models.BooleanField("single sign-on", default=False)
    requests_per_minute = models.PositiveIntegerField(validators=[MinValueValidator(1)])
    burst = models.PositiveIntegerField(
        validators=[MinValueValidator(1)],
        help_text="So many at once; afterwards as many as the minute allows.",
    )
    budget_micro = models.PositiveBigIntegerField(
        null=True,
        blank=True,
        help_text="What models may cost a month, in millionths of the currency; empty: no limit.",
    )
    turn_micro = models.PositiveBigIntegerField(
        null=True, blank=True, help_text="Of it, what one answer in a chat may cost at most; empty: all."
    )
    run_micro = models.PositiveBigIntegerField(
        null=True, blank=True, help_text="Of it, what one run of an agent may cost at most; empty: all."
    )
    updated_at = models.DateTimeField(auto_now=True, editable=False)

    class Meta:
        ordering = ["position"]
        constraints = [
            models.CheckConstraint(condition=Q(tier__in=PlanName.values), name="plan_known"),
            models.CheckConstraint(
                condition=Q(requests_per_minute__gte=1, burst__gte=1), name="plan_lets_requests_through"
            ),
        ]

    def __str__(self) -> str:
        return self.get_tier_display()


class PlanChange(models.Model):
    """A change of a plan by staff: the names of the columns, each with its old and its new value."""

    plan = models.ForeignKey(Plan, models.CASCADE, related_name="changes")
    by = models.UUIDField(help_text="Who of the staff; no reference, since the row outlives that account.")
    changes = models.JSONField()
    at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"change {self.pk}"


class OverrideQuerySet(models.QuerySet["Override"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def live(self) -> Self:
        """Return overrides that give their plan now."""
        return self.filter(Q(until=None) | Q(until__gt=Now()))


class Override(models.Model):
    """A plan that staff gave to a user, whatever they pay. A larger plan that is paid for still counts."""

    # No index of its own: the one below begins with it.
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="plan_overrides", db_index=False
    )
    tier = models.CharField("plan", max_length=8, choices=PlanName)
    until = models.DateTimeField(null=True, blank=True, help_text="Empty: until somebody ends it.")
    reason = models.CharField(max_length=200, help_text="The user can read it.")
    by = models.UUIDField(
        editable=False,
        help_text="Who of the staff gave it; no reference, since the row outlives that account.",
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = OverrideQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["user", "-created_at"], name="overrides_of_user"),
            models.Index(fields=["-created_at", "-id"], name="overrides_newest"),
            models.Index(fields=["until"], condition=Q(until__isnull=False), name="overrides_that_end"),
        ]
        constraints = [
            models.CheckConstraint(condition=Q(tier__in=PlanName.values), name="override_plan_known"),
            models.CheckConstraint(condition=~Q(reason=""), name="override_has_a_reason"),
            models.CheckConstraint(
                condition=Q(until=None) | Q(until__gte=F("created_at")), name="override_ends_later"
            ),
        ]

    def __str__(self) -> str:
        return f"override {self.pk}"


class StoredAmount(models.Model):
    """The amount of a kind that a user stores on the server, and the amount reserved for uploads.

    Together they may be more than the plan allows: after a downgrade nothing is deleted.
    """

    class Kind(models.TextChoices):
        STORAGE = "storage_bytes", "bytes of records"
        BACKUP = "backup_bytes", "bytes of backups"
        VECTORS = "vectors", "vectors"

    # No index of its own: the unique constraint begins with it.
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="stored_amounts", db_index=False
    )
    kind = models.CharField(max_length=13, choices=Kind)
    used = models.PositiveBigIntegerField(default=0)
    reserved = models.PositiveBigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "kind"], name="stored_amount_once"),
            models.CheckConstraint(
                condition=Q(kind__in=["storage_bytes", "backup_bytes", "vectors"]), name="stored_kind"
            ),
        ]

    def __str__(self) -> str:
        return f"stored {self.pk}"


class StorageReservation(models.Model):
    """Room that is kept free for an upload. The row is deleted when it has come, or will not come."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    kind = models.CharField(max_length=13, choices=StoredAmount.Kind)
    amount = models.PositiveBigIntegerField()
    expires_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"reservation {self.pk}"


class Purpose(models.TextChoices):
    """The purpose of a request to a model."""

    CHAT = "chat"
    FOLLOWUPS = "followups", "turns that follow up the end of a run"
    AGENTS = "agents"
    JOURNEYS = "journeys"
    MEMORY = "memory"
    VECTORS = "vectors", "vectors of texts that a client sent"


class UseQuerySet(models.QuerySet["Use"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)


class Use(models.Model):
    """The use of one model by one user on one day, for one purpose, and for one agent if it was for one."""

    id = models.BigAutoField(primary_key=True)
    # No index of its own: the unique constraint begins with it.
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="uses", db_index=False)
    day = models.DateField(help_text="in the user's time zone, as their months are")
    purpose = models.CharField(max_length=10, choices=Purpose)
    agent = models.UUIDField(null=True, help_text="no reference, since the figures outlive the agent")
    model = models.CharField(max_length=200)
    calls = models.PositiveIntegerField(default=0)
    input_tokens = models.PositiveBigIntegerField(default=0)
    cached_tokens = models.PositiveBigIntegerField(default=0, help_text="of the input")
    output_tokens = models.PositiveBigIntegerField(default=0)
    cost_micro = models.PositiveBigIntegerField(default=0, help_text="millionths of the currency")
    estimated_micro = models.PositiveBigIntegerField(
        default=0, help_text="the part of the cost that is an estimate: cancelled, broken off, or not told"
    )
    estimated_calls = models.PositiveIntegerField(default=0)
    unpriced_calls = models.PositiveIntegerField(
        default=0, help_text="of a model without a price: they count as if they cost nothing"
    )

    objects = UseQuerySet.as_manager()

    class Meta:
        ordering = ["-day", "-id"]
        verbose_name = "use of models"
        verbose_name_plural = "uses of models"
        constraints = [
            models.UniqueConstraint(
                fields=["user", "day", "purpose", "agent", "model"], name="use_of_a_day", nulls_distinct=False
            ),
            models.CheckConstraint(condition=Q(purpose__in=Purpose.values), name="use_purpose_known"),
        ]
        indexes = [models.Index(fields=["-day", "-id"], name="uses_newest")]

    def __str__(self) -> str:
        return f"{self.model} on {self.day}"


class Allowance(models.Model):
    """The money of one month's work: `spent` is settled, `reserved` is held for work that is under way.

    The limit of both together is no column: plans, agents and settings give it at each reservation.
    """

    class Scope(models.TextChoices):
        USER = "user", "all that a user's work costs"
        MEMORY = "memory", "what their memory costs"
        FOLLOWUPS = "followups", "what turns cost that follow up their runs"
        AGENT = "agent", "what one agent costs"
        INSTALLATION = "installation", "what everybody's work costs"

    id = models.BigAutoField(primary_key=True)
    scope = models.CharField(max_length=12, choices=Scope)
    # No index of its own: in the unique constraint it follows the scope, which has five values.
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="allowances", null=True)
    agent = models.UUIDField(null=True, help_text="no reference: the figures outlive the agent")
    # A date, not the moment at which it begins in the user's zone: another zone must not bring another allowance.
    month = models.DateField(help_text="the first day of the month it is for")
    spent = models.PositiveBigIntegerField(default=0, help_text="millionths of the currency")
    reserved = models.PositiveBigIntegerField(default=0)
    added = models.PositiveBigIntegerField(default=0, help_text="what staff gave on top, for this month")
    told_low = models.BooleanField(default=False, help_text="whether the user was told that little is left")

    class Meta:
        ordering = ["-month", "-id"]
        indexes = [models.Index(fields=["month"], name="allowances_by_month")]
        constraints = [
            models.UniqueConstraint(
                fields=["scope", "user", "agent", "month"],
                name="one_allowance_a_month",
                nulls_distinct=False,
            ),
            models.CheckConstraint(condition=Q(spent__gte=0, reserved__gte=0), name="allowance_not_negative"),
        ]

    def __str__(self) -> str:
        return f"{self.scope} {self.month:%Y-%m}"


class AddedAllowance(models.Model):
    """An amount that staff gave a user on top of one month's budget, and why. A row is never changed."""

    # No index of its own: the one below begins with it.
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="added_allowances", db_index=False
    )
    micro = models.PositiveBigIntegerField(
        "amount",
        validators=[MinValueValidator(1)],
        help_text="In millionths of the currency, for this month.",
    )
    reason = models.CharField(max_length=200, help_text="The user can read it.")
    month = models.DateField(editable=False, help_text="the first day of the month it counts for")
    by = models.UUIDField(
        editable=False,
        help_text="Who of the staff gave it; no reference, since the row outlives that account.",
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ["-created_at", "-id"]
        verbose_name = "addition to a budget"
        verbose_name_plural = "additions to budgets"
        indexes = [
            models.Index(fields=["user", "-created_at"], name="additions_of_user"),
            models.Index(fields=["-created_at", "-id"], name="additions_newest"),
        ]
        constraints = [
            models.CheckConstraint(condition=Q(micro__gte=1), name="addition_is_something"),
            models.CheckConstraint(condition=~Q(reason=""), name="addition_has_a_reason"),
        ]

    def __str__(self) -> str:
        return f"addition {self.pk}"


class Hold(models.Model):
    """Money that is held for a piece of work until it settles. If its process dies, it is spent when the hold expires.

    It has no reference to the user, so that it is settled even if the account is gone.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user_ref = models.UUIDField()
    purpose = models.CharField(max_length=10, choices=Purpose)
    agent = models.UUIDField(null=True)
    model = models.CharField(max_length=200)
    amount = models.PositiveBigIntegerField(help_text="millionths of the currency")
    allowances = ArrayField(models.BigIntegerField(), help_text="from which it was taken")
    expires_at = models.DateTimeField()

    class Meta:
        ordering = ["expires_at"]
        indexes = [models.Index(fields=["expires_at"], name="holds_by_end")]

    def __str__(self) -> str:
        return f"hold {self.pk}"
