"""Finds, creates or links the account of a person whom an identity provider has authenticated.

An existing account is linked only after its password was given. Each of these accounts takes a seat of the team.
"""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.accounts.models import User
from billing.entitlements import QuotaExceeded
from billing.sso import events
from billing.sso.errors import NoFreeSeat, SsoExpired, SsoRefused
from billing.sso.identities import Person
from billing.sso.models import Identity, IdentityProvider, SsoEvent
from billing.teams import members, seats
from billing.teams.models import Membership

Kind = SsoEvent.Kind


def account_of(provider: IdentityProvider, person: Person) -> User | None:
    """Return the account, made if nobody has the address; None if an account has it and its owner must give proof
    first.

    Raises SsoRefused, NoFreeSeat, InATeam.
    """
    known = (
        provider.identities.filter(issuer=person.issuer, subject=person.subject)
        .select_related("user")
        .first()
    )
    if known is not None:
        if not known.user.is_active:
            raise SsoRefused("your account here is deactivated")
        _require_place(provider, known.user)
        return known.user
    if User.objects.at_address(person.address).exists():
        return None
    return make(provider, person)


def _require_place(provider: IdentityProvider, user: User) -> None:
    """Require a seat: a member who lost it comes back by an invitation, not by themselves."""
    if provider.team.owner_id == user.pk:
        return
    mine = Membership.objects.of(user.pk).filter(team_id=provider.team_id).first()
    if mine is not None and mine.state == Membership.State.ACTIVE:
        return
    invited = Membership.objects.invited().filter(team_id=provider.team_id, address=user.email)
    if mine is not None:
        raise NoFreeSeat
    if not invited.exists():
        raise SsoRefused(
            "you are no member of your organisation's team any more: ask its owner to invite you"
        )
    _seat(provider, user)


def _seat(provider: IdentityProvider, user: User) -> None:
    try:
        members.join(team_id=provider.team_id, user_id=user.pk)
    except QuotaExceeded:
        raise NoFreeSeat from None


def make(provider: IdentityProvider, person: Person) -> User:
    try:
        with transaction.atomic():
            seats.lock(provider.team.owner_id)
            user = User.objects.create_user(
                person.address, email_verified_at=timezone.now(), locale=person.locale
            )
            Identity.objects.create(
                provider=provider, issuer=person.issuer, subject=person.subject, user=user
            )
            _seat(provider, user)
            events.note(provider.team_id, Kind.ACCOUNT_MADE, user_id=user.pk)
    except IntegrityError:  # somebody was quicker: two sign-ins at once
        raise SsoExpired from None
    except ValidationError:
        raise SsoRefused("your organisation does not say what your e-mail address is") from None
    return user


def may_be_new(address: str) -> bool:
    return not User.objects.at_address(address).confirmed().exists()


def link(provider: IdentityProvider, person: Person, user: User) -> None:
    """Link the account, which the caller knows to be this person's."""
    try:
        with transaction.atomic():
            seats.lock(provider.team.owner_id)
            if user.email_verified_at is None:
                # The organisation says that the person has this address, and nobody has confirmed it before.
                User.objects.filter(pk=user.pk).update(email_verified_at=Now())
            if provider.team.owner_id != user.pk:
                _seat(provider, user)
            Identity.objects.update_or_create(
                provider=provider, user=user, defaults={"issuer": person.issuer, "subject": person.subject}
            )
            events.note(provider.team_id, Kind.LINKED, user_id=user.pk)
    except IntegrityError:
        raise SsoExpired from None
