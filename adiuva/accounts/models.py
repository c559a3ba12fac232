"""Users, their sessions, and the wrapped data keys that seal their data."""

from __future__ import annotations

import unicodedata
import uuid
from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.hashers import check_password, make_password
from django.contrib.auth.models import PermissionsMixin
from django.contrib.postgres.indexes import GinIndex
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Lower, Now
from django.utils.timezone import now

from adiuva.accounts import addresses
from adiuva.accounts.address_search import EMAIL_WORDS, address_query
from adiuva.accounts.validators import validate_locale, validate_timezone
from adiuva.core.language import said
from adiuva.core.leases import Leased
from adiuva.core.rows import QuicklyRead
from adiuva.core.sealed import SealedTextField


class PlanName(models.TextChoices):
    """Price plans. The column and the wire call them `tier`; a row of billing says what each allows."""

    FREE = "free"
    PRO = "pro"
    POWER = "power"
    TEAM = "team"


class UserQuerySet(models.QuerySet["User"]):
    def at_address(self, email: str) -> UserQuerySet:
        """Return accounts of this address, confirmed or not; none if it is no address."""
        try:
            return self.filter(email=addresses.normalize(email))
        except addresses.AddressInvalid:
            return self.none()

    def with_address_part(self, part: str) -> UserQuerySet:
        """Return accounts with an address that has words beginning with those of `part`."""
        query = address_query(part)
        return (
            self.none()
            if query is None
            else self.alias(address_words=EMAIL_WORDS).filter(address_words=query)
        )

    def confirmed(self) -> UserQuerySet:
        return self.filter(email_verified_at__isnull=False)

    def newest_unconfirmed(self) -> UserQuerySet:
        return self.filter(email_verified_at__isnull=True).order_by("-created_at", "-id")[:1]

    def sign_in_candidates(self) -> UserQuerySet:
        """Return at most two accounts: the newest that is not confirmed, then the confirmed one."""
        chosen = Q(email_verified_at__isnull=False) | Q(pk__in=self.newest_unconfirmed().values("pk"))
        return self.filter(chosen).order_by(F("email_verified_at").asc(nulls_first=True))


class UserManager(BaseUserManager["User"]):
    def get_queryset(self) -> UserQuerySet:
        return UserQuerySet(self.model, using=self._db)

    def at_address(self, email: str) -> UserQuerySet:
        return self.get_queryset().at_address(email)

    def with_address_part(self, part: str) -> UserQuerySet:
        return self.get_queryset().with_address_part(part)

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Create a user without checking the rules for passwords, which is the caller's task (services.register)."""
        try:
            user = self.model(email=addresses.normalize(email), **fields)
        except addresses.AddressInvalid as error:
            raise ValidationError({"email": said(error.message)}) from None
        user.set_password(password)
        user.full_clean(exclude=["password"], validate_unique=False, validate_constraints=False)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Create a superuser. Whoever may start programs on the server vouches for the address."""
        vouched = {"is_staff": True, "is_superuser": True, "email_verified_at": now()}
        return self.create_user(email, password, **{**vouched, **fields})

    def get_by_natural_key(self, username: str | None) -> User:
        """Return the account that confirmed this address, or else the newest that has it."""
        found = list(self.at_address(username or "").sign_in_candidates())
        if not found:
            raise User.DoesNotExist
        return found[-1]


class User(QuicklyRead, AbstractBaseUser, PermissionsMixin):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    email = models.EmailField("e-mail", db_index=True)
    email_verified_at = models.DateTimeField(
        "e-mail confirmed",
        null=True,
        editable=False,
        help_text="When the user showed that they read mails to this address.",
    )
    new_email = models.EmailField(
        "new e-mail", blank=True, editable=False, help_text="Becomes the address when the user confirms it."
    )
    tier = models.CharField(
        max_length=8,
        choices=PlanName,
        default=PlanName.FREE,
        editable=False,
        help_text="Follows from what is paid and from what staff gave; only billing writes it.",
    )
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
        indexes = [
            models.Index(fields=["-created_at", "-id"], name="user_newest"),
            GinIndex(EMAIL_WORDS, name="user_email_words"),
            models.Index(fields=["tier"], condition=~Q(tier="free"), name="user_with_a_plan"),
        ]
        constraints = [
            models.CheckConstraint(condition=Q(email=Lower("email")), name="user_email_lower"),
            # Accounts that did not confirm the address do not count. So whoever registers an address neither learns
            # from the answer whether it has an account, nor keeps its owner from making one.
            models.UniqueConstraint(
                fields=["email"],
                condition=Q(email_verified_at__isnull=False),
                name="user_email_verified_once",
                violation_error_message="An account with this address exists already.",
            ),
            models.CheckConstraint(condition=Q(tier__in=PlanName.values), name="user_tier_known"),
        ]

    @classmethod
    def normalize_username(cls, username: Any) -> Any:
        """Return an e-mail address as it is stored and looked up; other texts stay as they are."""
        try:
            return addresses.normalize(username)
        except addresses.AddressInvalid:
            return username

    def clean(self) -> None:
        super().clean()
        try:
            addresses.normalize(self.email)
        except addresses.AddressInvalid as error:
            raise ValidationError({"email": said(error.message)}) from None

    def set_password(self, raw_password: str | None) -> None:
        super().set_password(_composed(raw_password))

    def check_password(self, raw_password: str | None) -> bool:
        return check_password(_composed(raw_password), self.password, self._renew_hash)

    def _renew_hash(self, password: str) -> None:
        """Store a hash of today's cost. One of a password that was changed since this row was read is not stored."""
        unchanged = User.objects.filter(pk=self.pk, password=self.password)
        self.password = make_password(password)
        unchanged.update(password=self.password)


def _composed(password: Any) -> Any:
    """Return one form for ü and for u with an accent, which keyboards type differently (NFC, as RFC 8265 asks)."""
    return unicodedata.normalize("NFC", password) if isinstance(password, str) else password


class Mail(Leased):
    """Mail that waits to be sent. The row is deleted when the mail server has taken the mail.

    Its text is composed when it is sent, so that no link with a secret waits in the database.
    """

    class Kind(models.TextChoices):
        VERIFY = "verify", "confirm the address of a new account"
        RESET = "reset", "set a new password"
        NEW_ADDRESS = "new_address", "confirm a new address"
        ADDRESS_CHANGE_ASKED = "address_change_asked", "a new address was asked for"
        ADDRESS_CHANGED = "address_changed", "the address was changed"
        PASSWORD_CHANGED = "password_changed", "the password was changed"
        FACTOR_ADDED = "factor_added", "a second factor was added"
        FACTOR_REMOVED = "factor_removed", "a second factor was removed"
        FACTOR_LOST = "factor_lost", "a second factor is said to be lost"
        FACTOR_RESET = "factor_reset", "remove the second factor"
        TEAM_INVITATION = "team_invitation", "an invitation to a team"
        PAYMENT_FAILED = "payment_failed", "a renewal was not paid"
        PLAN_ENDS_SOON = "plan_ends_soon", "a plan ends soon, since it was not paid"
        PLAN_ENDED = "plan_ended", "a plan has ended, since it was not paid"
        SSO_REQUIRED = "sso_required", "sign in through the organisation alone"
        PLUGIN_OFFERED = "plugin_offered", "a plugin is offered to a developer"
        PLUGIN_LEAVES = "plugin_leaves", "a plugin goes to another developer, unless its owner stops it"
        PLUGIN_GIVEN = "plugin_given", "a plugin went to another developer"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=24, choices=Kind)
    user = models.ForeignKey(User, on_delete=models.CASCADE, null=True, related_name="+")
    # Blank: the user's address at the time of sending. For a reset, the address that somebody typed: only the worker
    # looks whether it has an account, so that the answer takes the same time for all addresses.
    address = models.EmailField(blank=True)
    about = models.UUIDField(null=True, help_text="the row that it tells of, of which sending reads the rest")
    attempts = models.PositiveSmallIntegerField(default=0)
    not_before = models.DateTimeField(default=now)
    created_at = models.DateTimeField(default=now)

    class Meta:
        indexes = [models.Index(fields=["not_before"], name="mail_due")]
        constraints = [
            models.CheckConstraint(
                condition=Q(user__isnull=False) | ~Q(address=""), name="mail_has_a_recipient"
            ),
        ]

    def __str__(self) -> str:
        return f"mail {self.pk}"


class Deletion(Leased):
    """Closed account whose key is destroyed and whose rows a worker deletes. This row goes with the last of them."""

    user = models.OneToOneField(User, models.CASCADE, primary_key=True, related_name="deletion")
    began_at = models.DateTimeField(db_default=Now(), editable=False)

    def __str__(self) -> str:
        return f"deletion of {self.pk}"


class RevokedReason(models.TextChoices):
    """Reason why a session ended before it expired."""

    LOGOUT = "logout", "signed out"
    OTHER_DEVICE = "other_device", "signed out from another device"
    PASSWORD = "password", "the password was changed"
    REUSE = "reuse", "an old refresh token came back"
    STAFF = "staff", "signed out by staff"
    INACTIVE = "inactive", "the account was deactivated"
    SSO = "sso", "the organisation's sign-in no longer vouches for it, or asks for a new sign-in"


class SessionQuerySet(models.QuerySet["Session"]):
    def unrevoked(self) -> SessionQuerySet:
        return self.filter(revoked_at__isnull=True)

    def live(self, at: Any = None) -> SessionQuerySet:
        """Return the sessions that still authenticate, now or at some time."""
        return self.unrevoked().filter(expires_at__gt=now() if at is None else at, user__is_active=True)

    def end(self, reason: RevokedReason) -> int:
        """Revoke all sessions. Those revoked before keep their reason and are not counted. Returns how many ended."""
        return self.unrevoked().update(revoked_at=Now(), revoked_reason=reason)


class Session(QuicklyRead):
    """Device or browser that is signed in, with its family of refresh tokens.

    Only a token of the newest `generation` refreshes the session; see services.refresh.
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
            models.Index(
                fields=["revoked_at"], condition=Q(revoked_at__isnull=False), name="session_revoked"
            ),
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


class SessionChange(models.Model):
    """Note that a session was revoked or deleted, or its account deactivated or moved to another plan. Triggers write
    it.

    It is kept for a day. It names no account, so nothing of a deleted account stays.
    """

    id = models.BigAutoField(primary_key=True)
    session_id = models.UUIDField()
    changed_at = models.DateTimeField(db_index=True, db_default=Now())

    def __str__(self) -> str:
        return f"change {self.pk} of a session"


class Totp(models.Model):
    """Authenticator app of a user (RFC 6238). It counts once a first code has confirmed it."""

    user = models.OneToOneField(User, on_delete=models.CASCADE, primary_key=True, related_name="totp")
    secret = SealedTextField()
    confirmed_at = models.DateTimeField(null=True)
    last_step = models.BigIntegerField(
        default=-1
    )  # the last 30 seconds whose code was used: each code counts once
    created_at = models.DateTimeField(default=now)

    class Meta:
        verbose_name = "authenticator app"

    def __str__(self) -> str:
        return f"authenticator app of {self.pk}"


class Passkey(models.Model):
    """Passkey's public key; the private half is on a device of the user (WebAuthn)."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="passkeys")
    credential_id = models.BinaryField(unique=True)
    credential = models.BinaryField()  # fido2's AttestedCredentialData: nothing in it is secret
    # Some devices count their uses; a count that goes back shows a copy.
    sign_count = models.BigIntegerField(default=0)
    name = SealedTextField()
    created_at = models.DateTimeField(default=now)
    last_used_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"passkey {self.pk}"


class RecoveryCode(models.Model):
    """Recovery code, which replaces a lost second factor once. It is stored as a hash, since it is random and long."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="recovery_codes", db_index=False)
    code_hash = models.BinaryField()
    used_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "code_hash"], name="recovery_code_once")]

    def __str__(self) -> str:
        return f"recovery code {self.pk}"


class WrappedKey(models.Model):
    """Data key of a user, wrapped by a key of the ring. Without this row, nobody can read what the key sealed."""

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
    """A user's wrapped key, or a marker that says it is in the separate database for keys (SeparateKey).

    If there is a marker but no key, no new key may be made: existing data would become unreadable.
    """

    SEPARATE = ":apart"  # stands in place of a ring key's id, which contains no colon

    user = models.OneToOneField(User, on_delete=models.CASCADE, primary_key=True, related_name="+")

    class Meta(WrappedKey.Meta):
        pass

    @property
    def is_separate(self) -> bool:
        return self.ring_key == self.SEPARATE


class SeparateKey(WrappedKey):
    """Wrapped key in the keys' own database, which holds nothing else. keys.py creates the table."""

    user_id = models.UUIDField(primary_key=True)
    doomed_at = models.DateTimeField(null=True, help_text="When the deletion of its account began.")

    class Meta(WrappedKey.Meta):
        managed = False
        db_table = "userkey"


class StaffAction(models.Model):
    """Action of staff on an account. The account's owner can read it; it never holds values."""

    class Kind(models.TextChoices):
        CHANGED = "changed", "changed the account"
        SIGNED_OUT = "signed_out", "ended sessions"
        DEACTIVATED = "deactivated", "deactivated the account"
        RESET_SENT = "reset_sent", "sent a link to set a new password"
        FACTOR_RESET = "factor_reset", "ordered a link to remove the second factor"
        STARTED = "started", "started a run"
        CANCELLED = "cancelled", "cancelled a run"
        RETRIED = "retried", "had the end of a run told again"
        DELETED = "deleted", "deleted something of the account"
        PLAN_GIVEN = "plan_given", "gave the account a plan"
        PLAN_ENDED = "plan_ended", "ended a plan that was given"
        BUDGET_ADDED = "budget_added", "added to the month's budget"

    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="staff_actions", db_index=False)
    staff_id = models.UUIDField(help_text="who did it; no reference, since the row outlives that account")
    kind = models.CharField(max_length=12, choices=Kind)
    object = models.CharField(max_length=30, blank=True, help_text="what it was done to, such as session")
    object_id = models.CharField(max_length=40, blank=True)
    at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["user", "-id"], name="staff_actions_of_user")]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}"
