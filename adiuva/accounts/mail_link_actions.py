"""Actions through mailed links: confirm or change an address, set a new password, remove a lost second factor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import structlog
from django.db import IntegrityError, transaction
from django.utils import timezone

from adiuva.accounts import addresses, mails, reauthentication, second_factors, services
from adiuva.accounts.mail_links import Purpose, user_of
from adiuva.accounts.models import Mail, User
from adiuva.core.errors import Conflict, Invalid

# Time for an account's owner to notice that somebody wants its second factor removed.
FACTOR_RESET_DELAY: Final = timedelta(days=1)

log = structlog.get_logger(__name__)


class FactorNotRemovable(Conflict):
    code = "factor_not_removable"


class AddressInUse(Conflict):
    """Error that is shown only to somebody who reads the mails of that address."""

    code = "address_in_use"

    def __init__(self) -> None:
        super().__init__("another account has this address and confirmed it first")


def _valid_address(address: str) -> str:
    try:
        return addresses.normalize(address)
    except addresses.AddressInvalid as error:
        raise Invalid(error.message, fields={"email": [error.message]}) from None


# ── Confirming the address ─────────────────────────────────────────────────────────────────────────────────


def ask_verification(*, user: User) -> None:
    """Mail the confirmation link once more, unless the address is confirmed. Raises MailNotConfigured."""
    mails.require_configured()
    if user.email_verified_at is None:
        mails.order(Mail.Kind.VERIFY, user=user)


def verify_address(*, token: str) -> User:
    """Confirm the address. Raises LinkInvalid, AddressInUse."""
    with _address_taken(), transaction.atomic():
        user = user_of(Purpose.VERIFY, token)
        user.email_verified_at = timezone.now()
        user.save(update_fields=["email_verified_at"])
    log.info("account.address_verified", user_id=str(user.pk))
    return user


# ── Setting a new password ─────────────────────────────────────────────────────────────────────────────────


def ask_password_reset(*, email: str) -> None:
    """Mail a reset link to this address's account. Without an account, it takes as long and answers the same.

    Raises Invalid (not an address), MailNotConfigured.
    """
    mails.require_configured()
    mails.order(Mail.Kind.RESET, address=_valid_address(email))


def reset_password(*, token: str, new_password: str) -> User:
    """Set the password and sign out everywhere. Raises LinkInvalid, AddressInUse, Invalid (weak password)."""
    with _address_taken(), transaction.atomic():
        user = user_of(Purpose.RESET, token)
        services.check_password_rules(new_password, user, field="new_password")
        if user.email_verified_at is None:
            # The person who made the account may not read the mails of its address.
            second_factors.remove_all(user=user)
            user.email_verified_at = timezone.now()
            user.save(update_fields=["email_verified_at"])
        services.set_password(user=user, password=new_password)
    log.info("account.password_reset", user_id=str(user.pk))
    return user


# ── Removing a second factor that is lost ──────────────────────────────────────────────────────────────────


@transaction.atomic
def ask_factor_removal(*, user: User) -> None:
    """Tell the user by mail that somebody reported their second factor lost, and a day later mail the link that removes
    it.

    Staff call this, since they neither see nor set a factor. The link is not sent if the factor was used meanwhile, and
    it also asks for the password. Raises FactorNotRemovable, MailNotConfigured.
    """
    mails.require_configured()
    if user.email_verified_at is None or not second_factors.methods_of(user):
        raise FactorNotRemovable("this account has no second factor, or did not confirm its address")
    if Mail.objects.filter(user=user, kind=Mail.Kind.FACTOR_RESET).exists():
        raise FactorNotRemovable("such a link is under way to this user already")
    mails.order(Mail.Kind.FACTOR_LOST, user=user, address=user.email)
    mails.order(Mail.Kind.FACTOR_RESET, user=user, address=user.email, after=FACTOR_RESET_DELAY)


def remove_factors(*, token: str, password: str) -> User:
    """Remove all second factors; from then on the password is enough. Raises LinkInvalid, ConfirmationRequired."""
    with transaction.atomic():
        user = user_of(Purpose.FACTORS, token)
        reauthentication.require(user=user, password=password)
        second_factors.remove_all(user=user)
    log.info("account.factors_removed", user_id=str(user.pk))
    return user


# ── Changing the address ─────────────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def ask_address_change(*, user: User, email: str) -> None:
    """Mail a link to the new address, and tell the old one. The caller has confirmed that it is the user.

    If the new address has an account, the answer is the same, and a mail tells that account's owner. Raises Invalid,
    MailNotConfigured.
    """
    mails.require_configured()
    new = _valid_address(email)
    if new == user.email:
        raise Invalid(
            "this is the address of the account", fields={"email": ["This is the address already."]}
        )
    user.new_email = new
    services.save_columns(user, "new_email")
    mails.order(Mail.Kind.NEW_ADDRESS, user=user, address=new)
    mails.order(Mail.Kind.ADDRESS_CHANGE_ASKED, user=user, address=user.email)


def confirm_address_change(*, token: str) -> User:
    """Make the new address the account's own. Raises LinkInvalid, AddressInUse."""
    with _address_taken(), transaction.atomic():
        user = user_of(Purpose.NEW_ADDRESS, token)
        old, user.email, user.new_email = user.email, user.new_email, ""
        user.email_verified_at = timezone.now()
        user.save(update_fields=["email", "new_email", "email_verified_at"])
        mails.order(Mail.Kind.ADDRESS_CHANGED, user=user, address=old)
    log.info("account.address_changed", user_id=str(user.pk))
    return user


@contextmanager
def _address_taken() -> Iterator[None]:
    """Turn the violation of the unique constraint into AddressInUse."""
    try:
        yield
    except IntegrityError as error:
        if "user_email_verified_once" in str(error):
            raise AddressInUse from None
        raise
