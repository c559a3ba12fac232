"""Tells members that they sign in through their organisation alone from now on."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from uuid import UUID

from django.conf import settings
from django.urls import reverse

from adiuva.accounts import mails
from adiuva.accounts.mails import Letter
from adiuva.accounts.models import Mail, User
from billing.sso.models import IdentityProvider
from billing.teams.models import Membership

Kind = Mail.Kind


def register() -> None:
    mails.compose_with([Kind.SSO_REQUIRED], _required)


def order_of_required(provider: IdentityProvider, members: Collection[UUID]) -> None:
    """Order mails in the transaction that requires it of these members."""
    for user in User.objects.filter(pk__in=members):
        mails.order(Kind.SSO_REQUIRED, user=user, about=provider.pk)


def forget_required(provider: IdentityProvider) -> None:
    """Withdraw mails that were not sent yet: it is no longer required."""
    Mail.objects.filter(kind=Kind.SSO_REQUIRED, about=provider.pk).delete()


def _required(mail: Mail) -> Iterator[Letter]:
    user, about = mail.user, mail.about
    assert about is not None
    still = IdentityProvider.objects.filter(
        pk=about,
        is_required=True,
        team__memberships__user=user,
        team__memberships__state=Membership.State.ACTIVE,
    )
    if user is None or not still.exists():
        return
    context = {"page": f"{settings.PUBLIC_URL}{reverse('sso')}"}
    yield Letter(user.email, "sso_required", context, user.locale, folder="billing")
