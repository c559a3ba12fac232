"""Billing's mails: invitations to teams, and notices about a plan whose payment failed.

A row says when a mail is sent; whether there is still a reason for it is looked up then. So the reminder and the end of
a plan are ordered with the first mail, in the transaction that learns of the failed payment, and each is sent once. If
Stripe gives up earlier, the last one is sent then.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from django.conf import settings
from django.urls import reverse
from django.utils import timezone

from adiuva.accounts import mails
from adiuva.accounts.mails import Letter
from adiuva.accounts.models import Mail, User
from billing.payments.models import GRACE, Subscription
from billing.teams import members
from billing.teams.models import Membership

Kind = Mail.Kind
_ABOUT_PAYMENT: Final = (Kind.PAYMENT_FAILED, Kind.PLAN_ENDS_SOON, Kind.PLAN_ENDED)
_UNPAID_ENDS: Final = (Subscription.Status.CANCELED, Subscription.Status.UNPAID)
_REMINDED_BEFORE: Final = timedelta(days=3)
# The clocks of the database and of a process differ by less.
_SAME_TIME: Final = timedelta(minutes=1)


def register() -> None:
    mails.compose_with([Kind.TEAM_INVITATION], _invitation)
    mails.compose_with(_ABOUT_PAYMENT, _about_payment)


def order_of_failed_payment(subscription: Subscription, user: User) -> None:
    """Order mails for now, three days before the plan ends, and its end. Call it in the failure's transaction."""
    mails.order(Kind.PAYMENT_FAILED, user=user, about=subscription.pk)
    mails.order(Kind.PLAN_ENDS_SOON, user=user, about=subscription.pk, after=GRACE - _REMINDED_BEFORE)
    mails.order(Kind.PLAN_ENDED, user=user, about=subscription.pk, after=GRACE)


def settle_late_payment(subscription: Subscription) -> None:
    """Stop telling that the subscription is late: it was paid, or has ended, which is told now."""
    if subscription.status in _UNPAID_ENDS:
        mails.send_now(Kind.PLAN_ENDED, about=subscription.pk)
    else:
        Mail.objects.filter(kind__in=_ABOUT_PAYMENT, about=subscription.pk).delete()


def _invitation(mail: Mail) -> Iterator[Letter]:
    assert mail.about is not None
    found = Membership.objects.invited().filter(pk=mail.about, address=mail.address)
    if (invitation := found.select_related("team__owner").first()) is None:
        return
    owner = invitation.team.owner
    invited = User.objects.at_address(mail.address).confirmed().first()
    context = {"team": invitation.team.name, "owner": owner.email, "link": members.link_of(invitation)}
    yield Letter(mail.address, "team_invitation", context, (invited or owner).locale, folder="billing")


def _about_payment(mail: Mail) -> Iterator[Letter]:
    assert mail.about is not None
    user, row = mail.user, Subscription.objects.filter(pk=mail.about, user=mail.user).first()
    if user is None or row is None:
        return
    late_since = row.past_due_since
    if late_since is None:
        if mail.kind != Kind.PLAN_ENDED or row.status not in _UNPAID_ENDS:
            return
    elif late_since > mail.created_at + _SAME_TIME:
        return  # a later failure, which has mails of its own
    context: dict[str, Any] = {
        "plan": row.get_tier_display(),
        "page": f"{settings.PUBLIC_URL}{reverse('billing')}",
    }
    if late_since is not None:
        context["until"] = timezone.localtime(late_since + GRACE, ZoneInfo(user.timezone)).date()
    yield Letter(user.email, mail.kind, context, user.locale, folder="billing")
