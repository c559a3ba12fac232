"""Operations on accounts and sessions, for REST, the admin, the device socket and commands."""

from __future__ import annotations

import secrets
from datetime import timedelta
from hashlib import sha256
from uuid import UUID

import structlog
from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.contrib.auth.password_validation import validate_password
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.db.models import QuerySet
from django.utils import timezone

from adiuva.accounts import (
    deletion,
    keys,
    mails,
    passkeys,
    second_factors,
    session_check,
    sign_in_rules,
    tokens,
)
from adiuva.accounts.models import Mail, RevokedReason, Session, User
from adiuva.accounts.passkeys import Assertion
from adiuva.accounts.second_factors import Proof
from adiuva.accounts.sign_in_rules import Way
from adiuva.accounts.tokens import TokenPair
from adiuva.core.errors import Conflict, Invalid, NotAuthenticated, NotFound, Text
from adiuva.core.pruning import delete_in_batches

log = structlog.get_logger(__name__)

MAX_PASSWORD_CHARS = 1000  # longer ones add no security and cost time to hash
_HASHES_OF_A_REFUSAL = 2  # one sign-in compares the password with as many accounts
_LAST_USED_STEP = timedelta(minutes=1)  # a session's `last_used_at` is written at most this often
_ENDED_SESSIONS_KEPT = timedelta(days=30)  # users and staff can see this long how a session ended


class InvalidCredentials(NotAuthenticated):
    code = "invalid_credentials"

    def __init__(self) -> None:
        super().__init__("the e-mail address or the password is wrong")


class EmailTaken(Conflict):
    code = "email_taken"

    def __init__(self) -> None:
        super().__init__(
            "an account with this address exists already",
            fields={"email": ["An account with this address exists already."]},
        )


class RefreshTokenReused(NotAuthenticated):
    code = "refresh_reused"

    def __init__(self) -> None:
        super().__init__("this refresh token was used before, so its session was ended: sign in again")


# ── Signing in ──────────────────────────────────────────────────────────────────────────────────────────


def register(*, email: str, password: str, user_agent: str = "") -> TokenPair:
    """Create an account and sign in. Raises Invalid (weak password, invalid address).

    The answer does not say whether the address has an account already. If it has, this makes another account with an
    unconfirmed address, and a mail tells the owner. Without a mail server, it raises EmailTaken.
    """
    check_password_rules(password, User(email=email), field="password")
    try:
        with transaction.atomic():
            if not settings.MAIL_ENABLED:
                _require_free(email)
            user = User.objects.create_user(email, password)
            session = _open_session(user, user_agent)
            mails.order(Mail.Kind.VERIFY, user=user)
    except ValidationError as error:
        raise Invalid("the account's values are not valid", fields=error.message_dict) from None
    log.info("account.registered", user_id=str(user.pk))
    return tokens.issue(session)


def _require_free(email: str) -> None:
    """Raise EmailTaken if the address has an account. Of several who register an address at once, one gets it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('adiuva register'))")
    if User.objects.at_address(email).exists():
        raise EmailTaken


def check_credentials(*, email: str, password: str) -> User:
    """Return the active account of this address and password. Raises InvalidCredentials.

    An address can have one account that confirmed it and others that did not, of which the newest counts. A refusal
    always costs two hashes, so that its time does not tell what is wrong.
    """
    found: list[User] = list(User.objects.at_address(email).sign_in_candidates())
    for user in found:
        if user.check_password(password) and user.is_active:
            return user
    for _ in range(_HASHES_OF_A_REFUSAL - len(found)):
        make_password(password)
    raise InvalidCredentials


def login(*, email: str, password: str, user_agent: str = "") -> TokenPair:
    """Open a session. Raises SecondFactorRequired, or InvalidCredentials, which takes as long and says the same
    whatever is wrong."""
    user = check_credentials(email=email, password=password)
    if second_factors.methods_of(user):
        raise second_factors.SecondFactorRequired(user)
    return tokens.issue(open_session(user=user, user_agent=user_agent))


def login_with_second_factor(*, ticket: str, proof: Proof, user_agent: str = "") -> TokenPair:
    """Finish a sign-in with its second step. Raises SecondFactorRefused, InvalidCredentials."""
    user = second_factors.user_of_ticket(ticket)
    second_factors.require(user, proof)
    return tokens.issue(open_session(user=user, user_agent=user_agent))


def login_with_passkey(*, passkey: Assertion, user_agent: str = "") -> TokenPair:
    """Sign in with a passkey alone, if its device verified the owner. Raises SecondFactorRefused."""
    user = passkeys.user_of(passkey)
    if user is None:
        raise second_factors.SecondFactorRefused
    return tokens.issue(open_session(user=user, user_agent=user_agent, way="passkey"))


@transaction.atomic
def open_session(*, user: User, user_agent: str, way: Way = "password") -> Session:
    """Open a session for a recognised user. Raises InvalidCredentials if the password has changed since, or the error
    of a rule that refuses this way of signing in."""
    sign_in_rules.require_allowed(user.pk, way)
    # This locks the row, so that the password cannot change, nor the account be deactivated, before the session is
    # open.
    unchanged = User.objects.filter(pk=user.pk, password=user.password, is_active=True)
    if not unchanged.update(last_login=timezone.now()):
        raise InvalidCredentials
    return _open_session(user, user_agent)


def refresh(*, refresh_token: str) -> TokenPair:
    """Return the tokens of the next generation. Raises NotAuthenticated, or RefreshTokenReused for an old token.

    Also raises the error of a rule that ends the session (adiuva.accounts.sign_in_rules).

    The generation before the newest is accepted for settings.REFRESH_GRACE: the answer may have been lost, or two
    requests of the client raced. An older token must have been stolen, so the whole session ends (RFC 9700, 4.14.2).
    """
    claims = tokens.verify(refresh_token, "refresh")
    sign_in_rules.require_going_on(claims.user_id, claims.session_id)
    now = timezone.now()
    with transaction.atomic():
        session = (
            Session.objects.live()
            .select_for_update(of=("self",))
            .filter(pk=claims.session_id, user_id=claims.user_id, generation__gte=claims.generation)
            .first()
        )
        if session is None:
            raise NotAuthenticated("the session is over: sign in again")
        behind = session.generation - claims.generation
        reused = behind > 1 or (behind == 1 and now - session.rotated_at > settings.REFRESH_GRACE)
        if reused:
            Session.objects.filter(pk=session.pk).end(RevokedReason.REUSE)
        elif behind == 0:
            session.generation += 1
            session.rotated_at = session.last_used_at = now
            session.expires_at = now + settings.SESSION_LIFE
            session.save(update_fields=["generation", "rotated_at", "last_used_at", "expires_at"])
    if reused:
        log.warning("session.refresh_token_reused", user_id=str(session.user_id), session_id=str(session.pk))
        raise RefreshTokenReused
    return tokens.issue(session)


def authenticate(*, access_token: str) -> Session:
    """Return the live session of an access token, with its user, in one query. Raises NotAuthenticated."""
    claims = tokens.verify(access_token, "access")
    session = session_check.find_live(session_id=claims.session_id, user_id=claims.user_id)
    if session is None:
        raise NotAuthenticated("the session is over: sign in again")
    now = timezone.now()
    if now - session.last_used_at >= _LAST_USED_STEP:
        Session.objects.filter(pk=session.pk).update(last_used_at=now)
    return session


def find_browser_session(*, user_id: UUID, session_id: UUID) -> Session | None:
    """Return the live session of a browser; it counts as used."""
    session = Session.objects.live().filter(pk=session_id, user_id=user_id).first()
    if session is not None and timezone.now() - session.last_used_at >= _LAST_USED_STEP:
        Session.objects.filter(pk=session.pk).update(last_used_at=timezone.now())
    return session


# ── The device socket ──────────────────────────────────────────────────────────────────────────────────


def issue_ticket(*, session: Session) -> tuple[str, int]:
    """Return a one-time ticket for the device socket, which browsers need, and its expiry in Unix seconds."""
    ticket = secrets.token_urlsafe(32)
    cache.set(_ticket_key(ticket), f"{session.user_id} {session.pk}", settings.TICKET_LIFE.total_seconds())
    return ticket, int((timezone.now() + settings.TICKET_LIFE).timestamp())


def redeem_ticket(ticket: str) -> Session:
    """Return the session and user of a ticket that is valid and was not redeemed. Raises NotAuthenticated."""
    key = _ticket_key(ticket)
    found = cache.get(key)
    # Several requests may read the ticket, but only one deletes it.
    if not isinstance(found, str) or not cache.delete(key):
        raise NotAuthenticated("the ticket is not valid, or was used, or has expired")
    user_id, session_id = (UUID(part) for part in found.split())
    session = session_check.find_live(session_id=session_id, user_id=user_id)
    if session is None:
        raise NotAuthenticated("the session is over: sign in again")
    return session


# ── Signing out ──────────────────────────────────────────────────────────────────────────────────────────


def logout(*, session: Session) -> None:
    Session.objects.filter(pk=session.pk).end(RevokedReason.LOGOUT)


def end_session(*, user: User, session_id: UUID) -> None:
    """Sign out one of the user's devices. Raises NotFound if the session has ended or is another user's."""
    if not Session.objects.live().filter(user=user, pk=session_id).end(RevokedReason.OTHER_DEVICE):
        raise NotFound("there is no such session")


def end_sessions(*, user: User, reason: RevokedReason, keep: Session | None = None) -> int:
    """Sign out all of the user's devices except `keep`. Returns how many."""
    others = Session.objects.filter(user=user, expires_at__gt=timezone.now())
    return (others.exclude(pk=keep.pk) if keep else others).end(reason)


def delete_old_sessions() -> int:
    """Delete the rows of sessions that ended more than 30 days ago. Returns how many."""
    before = timezone.now() - _ENDED_SESSIONS_KEPT
    expired = Session.objects.filter(expires_at__lt=before).order_by("expires_at")
    revoked = Session.objects.filter(revoked_at__lt=before).order_by("revoked_at")
    delete_in_batches(session_check.old_changes())
    return delete_in_batches(expired) + delete_in_batches(revoked)


# ── The account ─────────────────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def save_columns(user: User, *columns: str) -> None:
    """Save these columns of an account, and leave the others, which may have changed since it was read.

    Raises keys.NoSuchUser if the account was deleted meanwhile: saving it as a whole would insert it again.
    """
    keys.lock_user(user.pk)
    user.save(update_fields=columns)


def change_password(*, user: User, current: str, new: str, keep: Session | None = None) -> None:
    """Set a new password and sign out all sessions except `keep`. Raises Invalid, or what `set_password` raises."""
    if not user.check_password(current):
        raise Invalid(
            "the current password is wrong",
            fields={"current_password": ["This is not the current password."]},
        )
    check_password_rules(new, user, field="new_password")
    set_password(user=user, password=new, keep=keep)


@transaction.atomic
def set_password(*, user: User, password: str, keep: Session | None = None) -> None:
    """Set a password that has been checked, sign out all sessions except `keep`, and tell the user by mail.

    Raises NotAuthenticated if the password was changed since the user was read: who came with the old one may be no
    longer who owns the account. Raises keys.NoSuchUser.
    """
    keys.lock_user(user.pk)
    unchanged = User.objects.filter(pk=user.pk, password=user.password)
    user.set_password(password)
    if not unchanged.update(password=user.password):
        raise NotAuthenticated("the password was changed meanwhile: sign in again")
    end_sessions(user=user, reason=RevokedReason.PASSWORD, keep=keep)
    mails.order(Mail.Kind.PASSWORD_CHANGED, user=user)


def deactivate(*, users: QuerySet[User]) -> int:
    """Deactivate accounts and end their sessions; nothing is deleted. Returns how many were active."""
    # One by one, because locks of two accounts must begin with the one that pays for the other, which is unknown here.
    return sum(map(_deactivate, users.filter(is_active=True).values_list("pk", flat=True)))


@transaction.atomic
def _deactivate(user_id: UUID) -> bool:
    if not User.objects.filter(pk=user_id, is_active=True).update(is_active=False):
        return False
    Session.objects.filter(user_id=user_id).end(RevokedReason.INACTIVE)
    return True


def delete_account(*, user: User) -> None:
    """Destroy the user's key and delete all of their rows. If there are many, a worker deletes them soon after.

    This cannot be undone. Raises keys.KeyUnavailable if the key cannot be reached: while the key exists, the data is
    not deleted for good.
    """
    deletion.begin(user)


def _open_session(user: User, user_agent: str) -> Session:
    now = timezone.now()
    return Session.objects.create(
        user=user,
        created_at=now,
        rotated_at=now,
        last_used_at=now,
        expires_at=now + settings.SESSION_LIFE,
        user_agent="".join(filter(str.isprintable, user_agent))[:200],
    )


def check_password_rules(password: str, user: User, *, field: str) -> None:
    """Raise Invalid, under the name of the field that held the password, if it breaks a rule."""
    if len(password) > MAX_PASSWORD_CHARS or "\0" in password:
        problems: list[str] = [
            Text("A password has at most {count} characters, none of them NUL.", count=MAX_PASSWORD_CHARS)
        ]
    else:
        try:
            validate_password(password, user)
            return
        except ValidationError as error:
            problems = error.messages
    raise Invalid("this password cannot be used", fields={field: problems})


def _ticket_key(ticket: str) -> str:
    # A hash, so that reading Redis gives no valid tickets, and clients cannot choose Redis keys.
    return f"ticket:{sha256(ticket.encode('utf-8', 'surrogatepass')).hexdigest()}"


def tier_of(user_id: UUID) -> str:
    """Return the tier of an account. Raises keys.NoSuchUser."""
    found = User.objects.filter(pk=user_id).values_list("tier", flat=True).first()
    if found is None:
        raise keys.NoSuchUser("this account no longer exists")
    return found
