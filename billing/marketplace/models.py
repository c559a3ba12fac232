"""Developers, their plugins and versions, checks, reviews and revocations.

A version's bytes never change, and it is listed only once somebody who is neither its author nor the plugin's owner has
approved it: triggers of the migration enforce both, whatever code does.
"""

from __future__ import annotations

import uuid
from string import punctuation
from typing import Final, Self

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchVector, SearchVectorField
from django.db import models
from django.db.models import F, FloatField, Func, GeneratedField, Q, Value
from django.db.models.functions import Cast, Lower, Now
from django.utils.translation import gettext_lazy

from adiuva.core.leases import Leased, is_free
from billing.marketplace.manifest import PluginKind
from billing.marketplace.permissions import PERMISSIONS
from billing.payments.copies import Copied

MIN_PRICE_CENTS: Final = 200
# A plugin begins as if it had ten ratings of three and a half stars, so that one rating cannot win.
PRIOR_STARS: Final = 35
PRIOR_RATINGS: Final = 10


class Developer(Copied):
    """A publisher of plugins. The row outlives the account, without a name, because buyers keep the plugins.

    The account at Stripe is copied (`payments.copies`).
    """

    class State(models.TextChoices):
        ACTIVE = "active"
        SUSPENDED = "suspended", "suspended by staff"
        GONE = "gone", "the account was deleted"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="developer"
    )
    handle = models.CharField(max_length=50, unique=True)
    name = models.CharField(max_length=100)
    stripe_account = models.CharField(max_length=255, unique=True, null=True, blank=True, editable=False)
    payouts_enabled = models.BooleanField(
        default=False, editable=False, help_text="Whether the account at Stripe takes transfers now."
    )
    account_told = models.BooleanField(
        default=False, editable=False, help_text="Whether its owner has told Stripe what it asks."
    )
    country = models.CharField(max_length=2, blank=True)
    state = models.CharField(max_length=9, choices=State, default=State.ACTIVE)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ["handle"]
        constraints = [
            models.CheckConstraint(condition=Q(handle=Lower("handle")), name="developer_handle_lower"),
            models.CheckConstraint(
                condition=Q(stripe_account__isnull=False) | Q(payouts_enabled=False),
                name="developer_paid_out_to_an_account",
            ),
        ]

    def __str__(self) -> str:
        return self.handle


def _words(column: str) -> Func:
    """Return a column without punctuation. PostgreSQL would take “tax-2026” for a word and a negative number, and
    “v1.2” or “example.com” for one word each, while people search for the words between the signs.
    """
    blanks = " " * len(punctuation)
    return Func(
        F(column), Value(punctuation), Value(blanks), function="translate", output_field=models.TextField()
    )


class PluginQuerySet(models.QuerySet["Plugin"]):
    def of(self, user_id: uuid.UUID) -> Self:
        """Return plugins that a user publishes."""
        return self.filter(developer__user_id=user_id)

    def listed(self) -> Self:
        return self.filter(state=Plugin.State.LISTED)


class Plugin(models.Model):
    """An entry of the catalogue. Its name and summary are those of its current version, which was reviewed."""

    class State(models.TextChoices):
        DRAFT = "draft", "no version is listed"
        LISTED = "listed"
        WITHDRAWN = "withdrawn", "withdrawn by its developer"
        SUSPENDED = "suspended", "taken down by staff"

    class Category(models.TextChoices):
        COMMUNICATION = "communication", gettext_lazy("Communication")
        DESIGN = "design", gettext_lazy("Design")
        DEVELOPMENT = "development", gettext_lazy("Development")
        FINANCE = "finance", gettext_lazy("Finance")
        PLANNING = "planning", gettext_lazy("Planning")
        RESEARCH = "research", gettext_lazy("Research")
        WRITING = "writing", gettext_lazy("Writing")
        OTHER = "other", gettext_lazy("Other")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    slug = models.CharField(max_length=50, unique=True)
    developer = models.ForeignKey(Developer, models.PROTECT, related_name="plugins")
    name = models.CharField(max_length=200)
    summary = models.CharField(max_length=200, blank=True)
    kind = models.CharField(
        max_length=14, choices=[(kind.value, kind.value) for kind in PluginKind], blank=True
    )
    category = models.CharField(max_length=13, choices=Category, default=Category.OTHER)
    price_cents = models.PositiveIntegerField(default=0)
    currency = models.CharField(max_length=3, default="eur")
    state = models.CharField(max_length=9, choices=State, default=State.DRAFT)
    current_version = models.ForeignKey(
        "billing.PluginVersion", models.PROTECT, null=True, related_name="+", db_index=False
    )
    installs = models.PositiveIntegerField(default=0, help_text="How many users have ever installed it.")
    # A trigger on the ratings maintains it, whichever way one comes or goes.
    stars = models.PositiveIntegerField(default=0, db_default=0, editable=False)
    ratings = models.PositiveIntegerField(default=0, db_default=0, editable=False)
    score = GeneratedField(
        expression=Cast(F("stars") + Value(PRIOR_STARS), FloatField())
        / Cast(F("ratings") + Value(PRIOR_RATINGS), FloatField()),
        output_field=FloatField(),
        db_persist=True,
    )
    words = GeneratedField(
        expression=SearchVector(_words("name"), _words("slug"), config="simple", weight="A")
        + SearchVector(_words("summary"), config="simple", weight="B"),
        output_field=SearchVectorField(),
        db_persist=True,
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    listed_at = models.DateTimeField(
        null=True, editable=False, help_text="When its first version was listed."
    )

    objects = PluginQuerySet.as_manager()

    class Meta:
        ordering = ["slug"]
        constraints = [
            models.CheckConstraint(
                condition=Q(price_cents=0) | Q(price_cents__gte=MIN_PRICE_CENTS), name="plugin_price"
            ),
            models.CheckConstraint(
                condition=~Q(state="listed") | Q(current_version__isnull=False, listed_at__isnull=False),
                name="plugin_listed_with_a_version",
            ),
            models.CheckConstraint(
                condition=Q(stars__gte=F("ratings"), stars__lte=5 * F("ratings")), name="plugin_stars"
            ),
        ]
        indexes = [
            models.Index(fields=["-score", "id"], condition=Q(state="listed"), name="plugins_best"),
            models.Index(
                fields=["-installs", "id"], condition=Q(state="listed"), name="plugins_most_installed"
            ),
            models.Index(fields=["-listed_at", "id"], condition=Q(state="listed"), name="plugins_newest"),
            models.Index(
                fields=["category", "-score", "id"], condition=Q(state="listed"), name="plugins_best_of"
            ),
            models.Index(
                fields=["category", "-installs", "id"],
                condition=Q(state="listed"),
                name="plugins_most_installed_of",
            ),
            models.Index(
                fields=["category", "-listed_at", "id"], condition=Q(state="listed"), name="plugins_newest_of"
            ),
            GinIndex(fields=["words"], name="plugin_words"),
        ]

    def __str__(self) -> str:
        return self.slug


class PluginVersionQuerySet(models.QuerySet["PluginVersion"]):
    def to_check(self) -> Self:
        """Return versions that wait for a worker's checks now."""
        return self.filter(is_free(), state__in=PluginVersion.UNCHECKED, not_before__lte=Now())

    def to_review(self) -> Self:
        return self.filter(state=PluginVersion.State.IN_REVIEW).order_by("submitted_at", "id")

    def to_list(self) -> Self:
        """Return approved versions whose hold is over."""
        return self.filter(state=PluginVersion.State.APPROVED, list_at__lte=Now())


class PluginVersion(Leased):
    """One package of a plugin. docs/plugins.md describes the states and the steps between them.

    The worker that checks it holds the lease.
    """

    class State(models.TextChoices):
        DRAFT = "draft"
        SUBMITTED = "submitted"
        CHECKING = "checking"
        IN_REVIEW = "in_review", "in review"
        CHANGES_ASKED = "changes_asked", "changes asked"
        REJECTED = "rejected"
        WITHDRAWN = "withdrawn"
        APPROVED = "approved", "approved, on hold"
        LISTED = "listed"
        YANKED = "yanked"
        REVOKED = "revoked"

    UNCHECKED = (State.SUBMITTED, State.CHECKING)
    # States that come after an approval, which signs the version.
    SIGNED = (State.APPROVED, State.LISTED, State.YANKED, State.REVOKED)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    plugin = models.ForeignKey(Plugin, models.PROTECT, related_name="versions", db_index=False)
    version = models.CharField(max_length=64)
    manifest = models.JSONField()
    permissions = ArrayField(models.CharField(max_length=30), default=list)
    sha256 = models.CharField(max_length=64)
    size = models.PositiveIntegerField()
    object = models.CharField(max_length=100, editable=False, help_text="the package's place in the store")
    author = models.ForeignKey(Developer, models.PROTECT, related_name="+", help_text="Who uploaded it.")
    notes = models.CharField(
        max_length=2000, blank=True, help_text="The developer's own, for who reviews it."
    )
    state = models.CharField(max_length=13, choices=State, default=State.DRAFT)
    reason = models.CharField(
        max_length=500,
        blank=True,
        help_text="Why it was yanked, revoked, rejected or sent back: people read it.",
    )
    signature = models.CharField(max_length=100, blank=True, editable=False)
    key_id = models.CharField(max_length=100, blank=True, editable=False)
    reviewed_at = models.DateTimeField(null=True, editable=False, help_text="As it is signed: to the second.")
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    submitted_at = models.DateTimeField(null=True, editable=False)
    list_at = models.DateTimeField(null=True, help_text="When its hold ends.")
    listed_at = models.DateTimeField(null=True, editable=False)
    before_revoked = models.CharField(
        max_length=13, blank=True, editable=False, help_text="The state to which it can be restored."
    )
    tries = models.PositiveSmallIntegerField(
        default=0, editable=False, help_text="Checks that broke, of this submission."
    )
    not_before = models.DateTimeField(db_default=Now(), editable=False)

    objects = PluginVersionQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(fields=["plugin", "version"], name="version_once"),
            models.CheckConstraint(
                condition=Q(permissions__contained_by=sorted(PERMISSIONS)), name="version_permissions_known"
            ),
            models.CheckConstraint(
                condition=~Q(state__in=["approved", "listed", "yanked", "revoked"])
                | Q(reviewed_at__isnull=False) & ~Q(signature="") & ~Q(key_id=""),
                name="version_signed_when_approved",
            ),
            models.CheckConstraint(
                condition=~Q(state__in=["listed", "yanked"]) | Q(listed_at__isnull=False),
                name="version_listed_at",
            ),
        ]
        indexes = [
            models.Index(fields=["object"], name="version_objects"),
            models.Index(
                fields=["not_before"],
                condition=Q(state__in=["submitted", "checking"]),
                name="versions_to_check",
            ),
            models.Index(fields=["submitted_at"], condition=Q(state="in_review"), name="versions_to_review"),
            models.Index(fields=["list_at"], condition=Q(state="approved"), name="versions_on_hold"),
        ]

    def __str__(self) -> str:
        return f"{self.plugin_id} {self.version}"


class PluginCheck(models.Model):
    """The result of one check when a version was last submitted. `findings`: `Finding.body` of each."""

    id = models.BigAutoField(primary_key=True)
    version = models.ForeignKey(PluginVersion, models.CASCADE, related_name="checks", db_index=False)
    name = models.CharField(max_length=40)
    required = models.BooleanField(default=True)
    blocks = models.BooleanField(default=False, help_text="It broke, or has found what nobody may publish.")
    result = models.CharField(max_length=6, choices=[(each, each) for each in ("passed", "found", "error")])
    findings = models.JSONField(default=list)
    at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["version", "name"], name="check_once")]

    def __str__(self) -> str:
        return f"{self.name} {self.result}"


class PluginReview(models.Model):
    """A decision of a member of the staff about a version. It is never changed."""

    class Decision(models.TextChoices):
        APPROVE = "approve"
        ASK_CHANGES = "ask_changes", "ask for changes"
        REJECT = "reject"

    id = models.BigAutoField(primary_key=True)
    version = models.ForeignKey(PluginVersion, models.PROTECT, related_name="reviews")
    reviewer = models.UUIDField(help_text="No reference, since the row outlives that account.")
    decision = models.CharField(max_length=11, choices=Decision)
    notes = models.CharField(max_length=2000, blank=True, help_text="The developer reads them.")
    checklist = ArrayField(models.CharField(max_length=40), default=list, help_text="What was looked at.")
    sha256 = models.CharField(max_length=64, help_text="Of the package that was looked at.")
    at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"review {self.pk}"


class RevocationQuerySet(models.QuerySet["Revocation"]):
    def in_force(self) -> Self:
        return self.filter(restored_at=None)


class Revocation(models.Model):
    """The revocation of a version, and perhaps its restoration. Clients disable such versions, and delete nothing."""

    id = models.BigAutoField(primary_key=True)
    version = models.ForeignKey(PluginVersion, models.PROTECT, related_name="revocations")
    reason = models.CharField(max_length=500)
    by = models.UUIDField(help_text="Who of the staff; no reference, since the row outlives that account.")
    at = models.DateTimeField(db_default=Now(), editable=False)
    restored_by = models.UUIDField(null=True)
    restored_at = models.DateTimeField(null=True)

    objects = RevocationQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["version"], condition=Q(restored_at=None), name="revoked_once_at_a_time"
            ),
            models.CheckConstraint(condition=~Q(reason=""), name="revocation_has_a_reason"),
        ]

    def __str__(self) -> str:
        return f"revocation {self.pk}"


class RevocationCounter(models.Model):
    """One row: the number of the list of revocations, which grows with each change of it.

    It is at least the time of the change (Unix, in seconds). So after a database was restored from a backup, the next
    change has a number that no client has seen.
    """

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    value = models.BigIntegerField(default=0)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="revocation_counter_alone")]

    def __str__(self) -> str:
        return str(self.value)
