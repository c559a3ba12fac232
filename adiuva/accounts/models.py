"""Users, their sessions, and the wrapped data keys that seal their data."""

from __future__ import annotations

import unicodedata
import uuid
from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Lower, Now
from django.utils.timezone import now

from adiuva.accounts.validators import validate_locale, validate_timezone


class Plan(models.TextChoices):
    """A price plan. The column and the wire call it `tier`."""

    FREE = "free"
    PRO = "pro"
    POWER = "power"
    TEAM = "team"


class UserManager(BaseUserManager["User"]):
    def create_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Create a user without checking the rules for passwords, which is up to the caller (see services.register)."""
        user = self.model(email=User.normalize_username(email), **fields)
        user.set_password(password)
        user.full_clean(exclude=["password"], validate_unique=False, validate_constraints=False)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> User:
        return self.create_user(email, password, **{"is_staff": True, "is_superuser": True, **fields})

    def get_by_natural_key(self, username: str | None) -> User:
        return self.get(email=User.normalize_username(username or ""))


class User(AbstractBaseUser, PermissionsMixin):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    email = models.EmailField(
        "e-mail", unique=True, error_messages={"unique": "An account with this address exists already."}
    )
    tier = models.CharField(max_length=8, choices=Plan, default=Plan.FREE)
    timezone = models.CharField(
        "time zone",
        max_length=64,
        default="UTC",
        validators=[validate_timezone],
        help_text="A name of the IANA database, such as Europe/Rome. Schedules are read in it.",
    )
    locale = models.CharField(
        max_length=35,
        default="en",
        validators=[validate_locale],
        help_text="A language tag, such as en or pt-BR.",
    )
    is_staff = models.BooleanField("staff", default=False, help_text="May use the admin.")
    is_active = models.BooleanField(
        "active", default=True, help_text="Off: cannot sign in, and what is signed in is signed out."
    )
    created_at = models.DateTimeField(default=now, editable=False)

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    objects = UserManager()

    class Meta:
        indexes = [models.Index(fields=["-created_at", "-id"], name="user_newest")]
        constraints = [
            # With the unique index on the column: no two accounts differ in case alone.
            models.CheckConstraint(condition=Q(email=Lower("email")), name="user_email_lower"),
            models.CheckConstraint(condition=Q(tier__in=Plan.values), name="user_tier_known"),
        ]

    @classmethod
    def normalize_username(cls, username: Any) -> Any:
        """An e-mail address as it is stored and looked up."""
        return unicodedata.normalize("NFKC", username).strip().lower()


class RevokedReason(models.TextChoices):
    """Why a session ended before it expired."""

    LOGOUT = "logout", "signed out"
    OTHER_DEVICE = "other_device", "signed out from another device"
    PASSWORD = "password", "the password was changed"
    REUSE = "reuse", "an old refresh token came back"
    STAFF = "staff", "signed out by staff"
    INACTIVE = "inactive", "the account was deactivated"


class SessionQuerySet(models.QuerySet["Session"]):
    def unrevoked(self) -> SessionQuerySet:
        return self.filter(revoked_at__isnull=True)

    def live(self) -> SessionQuerySet:
        """Sessions that still authenticate."""
        return self.unrevoked().filter(expires_at__gt=now(), user__is_active=True)

    def end(self, reason: RevokedReason) -> int:
        """Revoke them all. Those revoked before keep their reason and are not counted. Returns how many ended."""
        return self.unrevoked().update(revoked_at=Now(), revoked_reason=reason)


class Session(models.Model):
    """A signed-in device or browser, with its family of refresh tokens.

    Only a token of the newest `generation` refreshes it; see services.refresh.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="sessions")
    generation = models.PositiveIntegerField(default=1)
    rotated_at = models.DateTimeField(default=now)
    created_at = models.DateTimeField(default=now)
    last_used_at = models.DateTimeField(default=now)
    expires_at = models.DateTimeField()
    user_agent = models.CharField(max_length=200, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_reason = models.CharField(max_length=16, choices=RevokedReason, blank=True)

    objects = SessionQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["-created_at", "-id"], name="session_newest"),
            models.Index(fields=["expires_at"], name="session_expires"),
        ]
        constraints = [
            models.CheckConstraint(condition=Q(generation__gte=1), name="session_generation_positive"),
            models.CheckConstraint(condition=Q(expires_at__gt=F("created_at")), name="session_ends_later"),
            models.CheckConstraint(
                condition=Q(revoked_at__isnull=True, revoked_reason="")
                | Q(revoked_at__isnull=False, revoked_reason__in=RevokedReason.values),
                name="session_revoked_with_reason",
            ),
        ]

    def __str__(self) -> str:
        return f"session {self.pk}"


class WrappedKey(models.Model):
    """A user's data key, wrapped by a key of the ring. Without this row, everything the key sealed is unreadable."""

    ring_key = models.CharField(max_length=64, db_index=True)
    wrapped = models.BinaryField()
    created_at = models.DateTimeField(default=now)

    class Meta:
        abstract = True
        constraints = [
            models.CheckConstraint(condition=~Q(ring_key=""), name="%(class)s_names_its_ring_key"),
        ]

    def __str__(self) -> str:
        return f"key of {self.pk}"


class UserKey(WrappedKey):
    """The key itself, or a marker that the key is in the keys' own database (SeparateKey).

    If there is a marker but no key, no new key may be made: existing data would become unreadable.
    """

    SEPARATE = ":apart"  # in place of a ring key's id, which contains no colon

    user = models.OneToOneField(User, on_delete=models.CASCADE, primary_key=True, related_name="+")

    class Meta(WrappedKey.Meta):
        pass

    @property
    def is_separate(self) -> bool:
        return self.ring_key == self.SEPARATE


class SeparateKey(WrappedKey):
    """A key in the keys' own database, which holds nothing else. keys.py creates the table."""

    user_id = models.UUIDField(primary_key=True)
    doomed_at = models.DateTimeField(null=True, help_text="When the deletion of its account began.")

    class Meta(WrappedKey.Meta):
        managed = False
        db_table = "userkey"
