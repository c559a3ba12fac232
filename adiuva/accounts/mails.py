"""Mails to users: ordered in the transaction that they tell of, sent by a worker, and tried again after failures.

A request only writes a row, which takes the same time whether an address has an account or not. The worker looks up the
recipients and makes the links when it sends the mail.
"""

from __future__ import annotations

import smtplib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

import structlog
from django.conf import settings
from django.core.mail import EmailMessage, get_connection
from django.db.models.functions import Now
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone

from adiuva.accounts.factor_last_use import used_since
from adiuva.accounts.mail_links import Purpose, make_token
from adiuva.accounts.models import Mail, User
from adiuva.core import leases
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.errors import Unavailable
from adiuva.core.language import speaking

Kind = Mail.Kind
log = structlog.get_logger(__name__)

# A server has 20 s for each answer (EMAIL_TIMEOUT), and a mail takes about a dozen of them.
_LEASE: Final = timedelta(minutes=10)
_MAX_ATTEMPTS: Final = 12  # about a day with the delays below
_FIRST_DELAY: Final = timedelta(seconds=30)
_LONGEST_DELAY: Final = timedelta(hours=4)
_PER_SWEEP: Final = 200


class MailNotConfigured(Unavailable):
    code = "mail_not_configured"

    def __init__(self) -> None:
        super().__init__("this server sends no mails: ask who runs it to set a new password for you")


def require_configured() -> None:
    """Raise MailNotConfigured unless a mail server is configured."""
    if not settings.MAIL_ENABLED:
        raise MailNotConfigured


def order(
    kind: Mail.Kind,
    *,
    user: User | None = None,
    address: str = "",
    about: UUID | None = None,
    after: timedelta = timedelta(0),
) -> None:
    """Have a mail sent after the commit, or some time later. Without a mail server nothing is sent.

    `address`: the recipient, if it is not the user's address at the time of sending. `about`: the row that the mail
    tells of.
    """
    if not settings.MAIL_ENABLED:
        return
    mail = Mail.objects.create(
        kind=kind, user=user, address=address, about=about, not_before=timezone.now() + after
    )
    if not after:
        enqueue_on_commit("accounts.send_mail", mail.pk)


def send_now(kind: Mail.Kind, *, about: UUID) -> None:
    """Send a mail after the commit that was ordered for later and was not sent yet."""
    waiting = Mail.objects.filter(kind=kind, about=about, not_before__gt=Now())
    for mail_id in waiting.values_list("pk", flat=True):
        enqueue_on_commit("accounts.send_mail", mail_id)
    waiting.update(not_before=Now())


def order_password_reset(*, user: User) -> None:
    """Mail the user a link to set a new password. Staff use it, since they never set one. Raises MailNotConfigured."""
    require_configured()
    order(Kind.RESET, user=user)


# ── Sending ─────────────────────────────────────────────────────────────────────────────────────────────


def send(mail_id: UUID) -> None:
    """Send a mail that is due, unless another worker does. A failed mail is tried again later, for about a day."""
    due = Mail.objects.filter(pk=mail_id, not_before__lte=Now())
    found = leases.claim(due, _LEASE)
    if not found:
        return
    mail = found[0]
    try:
        _send(mail, mail.lease(_LEASE))
    except leases.LeaseLost:
        log.info("mail.taken_over", mail_id=str(mail.pk), kind=mail.kind)


def _send(mail: Mail, lease: leases.Lease[Mail]) -> None:
    try:
        if messages := [_message(letter) for letter in _letters(mail)]:
            # Counted before it is sent: a sender who is late has no lease to write with.
            lease.write(attempts=mail.attempts + 1)
            get_connection().send_messages(messages)
    except (smtplib.SMTPException, OSError) as error:
        _put_off(mail, lease, error)
    else:
        # Without the lease: whoever has taken over by now need not send it again.
        Mail.objects.filter(pk=mail.pk).delete()
        log.info("mail.sent", mail_id=str(mail.pk), kind=mail.kind, count=len(messages))


def sweep() -> None:
    """Start sending due mails: those that were put off, and those of a task or worker that was lost."""
    leases.reclaim(Mail.objects.all())
    due = Mail.objects.filter(leases.is_free(), not_before__lte=Now()).order_by("not_before")
    for mail_id in due.values_list("pk", flat=True)[:_PER_SWEEP]:
        send(mail_id)


def _put_off(mail: Mail, lease: leases.Lease[Mail], error: Exception) -> None:
    attempts = mail.attempts + 1
    final = _is_final(error) or attempts >= _MAX_ATTEMPTS
    event = "mail.given_up" if final else "mail.put_off"
    log.warning(event, mail_id=str(mail.pk), kind=mail.kind, attempts=attempts, error=type(error).__name__)
    if final:
        Mail.objects.filter(pk=mail.pk).delete()
        return
    delay = min(_FIRST_DELAY * 2 ** (attempts - 1), _LONGEST_DELAY)
    lease.release(attempts=attempts, not_before=timezone.now() + delay)


def _is_final(error: Exception) -> bool:
    """Return whether the server will refuse the recipient again. After a code below 500 it may take the mail later:
    when the mailbox has room again, for example."""
    if not isinstance(error, smtplib.SMTPRecipientsRefused):
        return False
    return all(code >= 500 for code, _ in error.recipients.values())


# ── What mails say ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Letter:
    """Mail as it is sent. `template` is a file of `templates/<folder>/mail/`; its first line is the subject."""

    to: str
    template: str
    context: dict[str, Any]
    locale: str
    folder: str = "accounts"


Compose = Callable[[Mail], Iterator[Letter]]

_composers: dict[str, Compose] = {}


def compose_with(kinds: Iterable[Mail.Kind], compose: Compose) -> None:
    """Register a function that composes mails of these kinds, and returns no letter if the reason for one is gone."""
    _composers.update(dict.fromkeys(kinds, compose))


def _letters(mail: Mail) -> Iterator[Letter]:
    """Return the mails to send: usually one, and none if the reason for the mail is gone."""
    if (compose := _composers.get(mail.kind)) is not None:
        yield from compose(mail)
        return
    user = mail.user
    if mail.kind == Kind.RESET:
        for account in [user] if user else _accounts_to_reset(mail.address):
            yield _with_link(account, account.email, "reset", Purpose.RESET, "reset-password")
        return
    assert user is not None  # a constraint
    match mail.kind:
        case Kind.VERIFY:
            if user.email_verified_at:
                return
            if owner := _other_owner(user.email, user):
                yield Letter(owner.email, "account_exists", {"asked": "registered"}, owner.locale)
            else:
                yield _with_link(user, user.email, "verify", Purpose.VERIFY, "verify-address")
        case Kind.NEW_ADDRESS:
            if user.new_email != mail.address:
                return
            if owner := _other_owner(mail.address, user):
                yield Letter(owner.email, "account_exists", {"asked": "changed"}, owner.locale)
            else:
                yield _with_link(user, mail.address, "new_address", Purpose.NEW_ADDRESS, "confirm-address")
        case Kind.FACTOR_RESET:
            # A factor that was used since is not lost; a mail told its owner of this one a day ago.
            if user.is_active and user.email == mail.address and not used_since(user, mail.created_at):
                yield _with_link(user, user.email, "factor_reset", Purpose.FACTORS, "remove-factors")
        case _:
            yield Letter(mail.address or user.email, mail.kind, {}, user.locale)


def _accounts_to_reset(address: str) -> list[User]:
    """Return the account that confirmed the address, or else the newest that has it: the mail's reader confirms it."""
    found = list(User.objects.at_address(address).sign_in_candidates())
    return [user for user in found[-1:] if user.is_active]


def _other_owner(address: str, user: User) -> User | None:
    confirmed = User.objects.at_address(address).confirmed()
    return confirmed.filter(is_active=True).exclude(pk=user.pk).first()


def _with_link(user: User, to: str, template: str, purpose: Purpose, page: str) -> Letter:
    query = urlencode({"token": make_token(purpose, user)})
    link = f"{settings.PUBLIC_URL}{reverse(page)}?{query}"
    return Letter(to, template, {"link": link, "lifetime": purpose.lifetime}, user.locale)


def _message(letter: Letter) -> EmailMessage:
    context = {"address": letter.to, "server": settings.PUBLIC_URL, **letter.context}
    context["reset_page"] = settings.PUBLIC_URL + reverse("ask-reset")
    # The first line is the subject. Texts are plain, so nothing is escaped for HTML.
    with speaking(letter.locale):
        subject, _, body = render_to_string(f"{letter.folder}/mail/{letter.template}.txt", context).partition(
            "\n"
        )
    headers = {"Auto-Submitted": "auto-generated", "X-Auto-Response-Suppress": "All"}
    return EmailMessage(subject.strip(), body.strip() + "\n", to=[letter.to], headers=headers)
