"""Connected accounts of users, and pending consents."""

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
from adiuva.core.errors import Text
from adiuva.core.sealed import SealedJSONField, SealedTextField


class Provider(models.TextChoices):
    GMAIL = "gmail", "Gmail"
    OUTLOOK = "outlook", "Outlook"
    TEAMS = "teams", "Teams"


class Health(models.TextChoices):
    OK = "ok"
    NEEDS_REAUTH = "needs_reauth"


class Reason(models.TextChoices):
    """The reasons why a connection must be connected again. The labels are shown to people."""

    REFUSED = "refused", "the permission was taken back, has expired, or the password was changed"
    SIGN_IN = "sign_in", "the provider asks for a new sign-in"
    NO_REFRESH = "no_refresh", "the provider gave no lasting permission"


def reconnect_text(provider: str, reason: str) -> Text:
    """Return the text about a connection that must be connected again."""
    return Text(
        "connect {provider} again: {reason}",
        provider=Provider(provider).label,
        reason=Text(Reason(reason).label) if reason else "",
    )


class ConnectionQuerySet(models.QuerySet["Connection"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def unannounced(self) -> Self:
        """Return lost connections that no device of the user has been told of."""
        return self.filter(health=Health.NEEDS_REAUTH, told_at__isnull=True)


class Connection(models.Model):
    """An account at a provider that Adiuva may read. Its address and tokens are sealed with the user's key."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    # No index of its own: the unique constraint begins with it.
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="connections", db_index=False
    )
    provider = models.CharField(max_length=8, choices=Provider)
    account_hash = models.BinaryField(max_length=32, editable=False)
    account = SealedTextField()
    access_token = SealedTextField()
    refresh_token = SealedTextField(null=True)
    scopes = ArrayField(models.CharField(max_length=200), default=list, editable=False)
    # The access token is refreshed from this time on, some minutes before it expires.
    renew_at = models.DateTimeField(editable=False)
    expires_at = models.DateTimeField(editable=False)
    # No refresh is tried before this time: the provider failed, or named a Retry-After.
    retry_at = models.DateTimeField(null=True, editable=False)
    health = models.CharField(max_length=12, choices=Health, default=Health.OK)
    reason = models.CharField(max_length=12, choices=Reason, blank=True)
    # The time when a device of the user was told that the connection is lost.
    told_at = models.DateTimeField(null=True, editable=False)
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

    def seal(self, field: SealedTextField, text: str) -> bytes:
        return field.seal(cipher_for(self.user_id), text, self.pk)

    def unseal(self, field: SealedTextField) -> str:
        """Return the text in a sealed field, which must not be NULL. Raises SealBroken."""
        return field.unseal_from(cipher_for(self.user_id), self)

    @property
    def address(self) -> str:
        """The account's address at the provider, to be shown to its owner only. Raises SealBroken."""
        return self.unseal(Connection.account)

    @property
    def address_or_blank(self) -> str:
        """The address; blank if it cannot be unsealed: such a row can still be listed, connected again and removed."""
        try:
            return self.address
        except SealBroken:
            return ""


class Consent(models.Model):
    """A user who was sent to a provider's consent page and may return once. Only the hash of the state is stored.

    `returned` is the grant that came back in a browser that is not signed in as that user. It waits until the user
    finishes with the completion, whose hash alone is stored.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    provider = models.CharField(max_length=8, choices=Provider)
    state_hash = models.BinaryField(max_length=32, unique=True)
    # PKCE's code verifier (RFC 7636).
    verifier = SealedTextField()
    redirect_uri = models.CharField(max_length=2000)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)
    returned = SealedJSONField(null=True)
    completion_hash = models.BinaryField(max_length=32, null=True, unique=True)

    class Meta:
        indexes = [models.Index(fields=["expires_at"], name="consents_expire")]

    def __str__(self) -> str:
        return f"consent {self.pk}"
