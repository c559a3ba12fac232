"""Which accounts a user has connected, and the consents that are under way."""

from __future__ import annotations

import uuid
from typing import Self

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import SealBroken


class Provider(models.TextChoices):
    GMAIL = "gmail", "Gmail"
    OUTLOOK = "outlook", "Outlook"
    TEAMS = "teams", "Teams"


class Health(models.TextChoices):
    OK = "ok"
    NEEDS_REAUTH = "needs_reauth"


class Reason(models.TextChoices):
    """Why a connection needs its user. The labels are for people."""

    REFUSED = "refused", "the permission was taken back, has expired, or the password was changed"
    SIGN_IN = "sign_in", "the provider asks for a new sign-in"
    NO_REFRESH = "no_refresh", "the provider gave no lasting permission"


class ConnectionQuerySet(models.QuerySet["Connection"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def untold(self) -> Self:
        """Those whose loss their user was not told of."""
        return self.filter(health=Health.NEEDS_REAUTH, told_at__isnull=True)


class Connection(models.Model):
    """An account at a provider that a user lets Adiuva read. Address and tokens are sealed with the user's key."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(  # the unique constraint begins with it
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="connections", db_index=False
    )
    provider = models.CharField(max_length=8, choices=Provider)
    account_hash = models.BinaryField(max_length=32, editable=False)
    account = models.BinaryField(editable=False)
    access_token = models.BinaryField(editable=False)
    refresh_token = models.BinaryField(null=True, editable=False)
    scopes = ArrayField(models.CharField(max_length=200), default=list, editable=False)
    renew_at = models.DateTimeField(editable=False)  # from then on a new token is asked for
    expires_at = models.DateTimeField(editable=False)
    retry_at = models.DateTimeField(
        null=True, editable=False
    )  # the provider asked to be left alone till then
    health = models.CharField(max_length=12, choices=Health, default=Health.OK)
    reason = models.CharField(max_length=12, choices=Reason, blank=True)
    told_at = models.DateTimeField(
        null=True, editable=False
    )  # when a device of the user's was told of the loss
    last_used_at = models.DateTimeField(null=True, editable=False)
    refreshed_at = models.DateTimeField(null=True, editable=False)
    refreshes = models.PositiveIntegerField(default=0, editable=False)
    connected_at = models.DateTimeField(db_default=Now(), editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = ConnectionQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["-created_at"], name="connections_newest"),
            models.Index(
                fields=["id"],
                condition=Q(health=Health.NEEDS_REAUTH, told_at__isnull=True),
                name="connections_untold",
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["user", "provider", "account_hash"], name="connection_once"),
            models.CheckConstraint(condition=Q(provider__in=Provider.values), name="connection_provider"),
            models.CheckConstraint(
                condition=Q(health=Health.OK, reason="")
                | Q(health=Health.NEEDS_REAUTH, reason__in=Reason.values),
                name="connection_reason_with_need",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_provider_display()} connection {self.pk}"

    def seal(self, column: str, text: str) -> bytes:
        return cipher_for(self.user_id).seal(text, "integrations_connection", self.pk, column)

    def unseal(self, column: str) -> str:
        """What is sealed in a column, in clear. Raise SealBroken."""
        sealed = bytes(getattr(self, column))
        return cipher_for(self.user_id).unseal(sealed, "integrations_connection", self.pk, column)

    @property
    def address(self) -> str:
        """The account's address at the provider, for its owner's eyes. Raise SealBroken."""
        return self.unseal("account")

    @property
    def address_if_known(self) -> str:
        """The same, or blank where it cannot be opened: such a row can still be listed, mended and removed."""
        try:
            return self.address
        except SealBroken:
            return ""


class Consent(models.Model):
    """A user who was sent to a provider and may come back, once. The state is not here, only its hash."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    provider = models.CharField(max_length=8, choices=Provider)
    state_hash = models.BinaryField(max_length=32, unique=True)
    verifier = models.BinaryField()  # of PKCE, sealed
    redirect_uri = models.CharField(max_length=2000)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [models.Index(fields=["expires_at"], name="consents_expire")]

    def __str__(self) -> str:
        return f"consent {self.pk}"

    def seal(self, verifier: str) -> bytes:
        return cipher_for(self.user_id).seal(verifier, "integrations_consent", self.pk, "verifier")

    def unseal(self) -> str:
        """The verifier. Raise SealBroken."""
        return cipher_for(self.user_id).unseal(self.verifier, "integrations_consent", self.pk, "verifier")
