"""Models of single sign-on: a team's identity provider, its domains, the identities of members, sessions and events."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Final, Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower, Now
from django.utils.translation import gettext_lazy

from adiuva.accounts.models import Session
from adiuva.core.sealed import SealedTextField
from billing.teams.models import Team

SIGN_IN_LASTS: Final = dt.timedelta(minutes=10)


class IdentityProvider(models.Model):
    """The sign-in of a team's organisation, as the owner set it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    team = models.OneToOneField(Team, models.CASCADE, related_name="identity_provider")
    issuer = models.CharField(
        max_length=500, help_text="The address below which the provider describes itself."
    )
    client_id = models.CharField(max_length=255)
    secret = SealedTextField()  # with the key of the team's owner
    is_required = models.BooleanField(
        "required", default=False, help_text="Members of the proven domains sign in this way alone."
    )
    worked_at = models.DateTimeField(
        null=True, editable=False, help_text="When somebody signed in with this issuer and client."
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(auto_now=True, editable=False)

    class Meta:
        ordering = ["-created_at"]
        verbose_name = "identity provider"

    def __str__(self) -> str:
        return f"identity provider {self.pk}"


class Domain(models.Model):
    """A domain whose addresses sign in at a provider, once a record in its DNS shows that it is the team's."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    # No index of its own: the unique constraint begins with it.
    provider = models.ForeignKey(IdentityProvider, models.CASCADE, related_name="domains", db_index=False)
    name = models.CharField(max_length=253)
    token = models.CharField(max_length=64, editable=False, help_text="What its record must hold; no secret.")
    proven_at = models.DateTimeField(null=True, editable=False)
    look_at = models.DateTimeField(null=True, editable=False, help_text="When its record is looked at again.")
    missing_since = models.DateTimeField(
        null=True, editable=False, help_text="Since when its record is gone."
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["provider", "name"], name="domain_once_a_provider"),
            models.UniqueConstraint(
                fields=["name"], condition=Q(proven_at__isnull=False), name="domain_proven_once"
            ),
            models.CheckConstraint(condition=Q(name=Lower("name")), name="domain_lower"),
        ]

    def __str__(self) -> str:
        return f"domain {self.pk}"


class Identity(models.Model):
    """A person's identity at a provider. The same subject of another issuer is another person."""

    id = models.BigAutoField(primary_key=True)
    # No index of its own: the unique constraints begin with it.
    provider = models.ForeignKey(IdentityProvider, models.CASCADE, related_name="identities", db_index=False)
    issuer = models.CharField(max_length=500)
    subject = models.CharField(max_length=255)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="sso_identities")
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["provider", "issuer", "subject"], name="identity_is_one_account"),
            models.UniqueConstraint(fields=["provider", "user"], name="account_has_one_identity"),
        ]

    def __str__(self) -> str:
        return f"identity {self.pk}"


class SignInQuerySet(models.QuerySet["SignIn"]):
    def open(self) -> Self:
        return self.filter(expires_at__gt=Now())


class SignIn(models.Model):
    """A sign-in under way: each of its steps is taken once.

    The browser or the app has the words that name a step; here are their hashes.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    state_hash = models.BinaryField(unique=True)
    provider = models.ForeignKey(IdentityProvider, models.CASCADE, related_name="+")
    challenge = models.CharField(max_length=64, blank=True, help_text="Of an app, which finishes it itself.")
    expires_at = models.DateTimeField(db_index=True)
    returned_at = models.DateTimeField(null=True)
    # The hash of the next step's word, while it waits for the password of an account that exists, or for the app.
    next_hash = models.BinaryField(null=True, unique=True)
    person = SealedTextField(null=True)  # with the key of the team's owner: what the provider said
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, null=True, related_name="+")

    objects = SignInQuerySet.as_manager()

    def __str__(self) -> str:
        return f"sign-in {self.pk}"


class SsoSession(models.Model):
    """A session that an organisation vouches for."""

    session = models.OneToOneField(Session, models.CASCADE, primary_key=True, related_name="sso")
    # Without one the session ends at its next refresh.
    provider = models.ForeignKey(IdentityProvider, models.SET_NULL, null=True, related_name="+")
    subject = models.CharField(max_length=255)
    refresh_token = SealedTextField(null=True)  # the provider's, with the user's key
    vouched_at = models.DateTimeField(db_default=Now())
    asked_at = models.DateTimeField(null=True, help_text="When a process began to ask again.")

    def __str__(self) -> str:
        return f"vouched session {self.pk}"


class SsoEvent(models.Model):
    """An event of a team's sign-in, for its owner and for staff. It holds ids and codes alone."""

    class Kind(models.TextChoices):
        SET = "set", gettext_lazy("the provider was set")
        REMOVED = "removed", gettext_lazy("the provider was removed")
        DOMAIN_ADDED = "domain_added", gettext_lazy("a domain was added")
        DOMAIN_PROVEN = "domain_proven", gettext_lazy("a domain was proven")
        DOMAIN_LOST = "domain_lost", gettext_lazy("a domain is no longer proven, since its record is gone")
        DOMAIN_REMOVED = "domain_removed", gettext_lazy("a domain was removed")
        REQUIRED = "required", gettext_lazy("it became required")
        OPTIONAL = "optional", gettext_lazy("it is no longer required")
        SIGNED_IN = "signed_in", gettext_lazy("somebody signed in")
        ACCOUNT_MADE = "account_made", gettext_lazy("an account was made")
        LINKED = "linked", gettext_lazy("an account was linked")
        REFUSED = "refused", gettext_lazy("a sign-in was refused")
        SESSION_ENDED = "session_ended", gettext_lazy("a session was ended")

    id = models.BigAutoField(primary_key=True)
    team = models.ForeignKey(Team, models.CASCADE, related_name="sso_events", db_index=False)
    kind = models.CharField(max_length=14, choices=Kind)
    user_id = models.UUIDField(
        null=True, help_text="whom it concerns; no reference, since the row outlives them"
    )
    code = models.CharField(max_length=40, blank=True, help_text="why, or which domain's row")
    at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-id"]
        verbose_name = "SSO event"
        indexes = [
            models.Index(fields=["team", "-id"], name="sso_events_of_team"),
            models.Index(fields=["at"], name="sso_events_by_age"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}"
