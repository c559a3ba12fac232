"""Single sign-on settings of a team, made by its owner: set the provider, prove domains, and require it of members.

A new issuer or client is a new sign-in with new identities, so members prove anew that an account is theirs, and nobody
is required to use it until it worked once.
"""

from __future__ import annotations

import secrets
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction
from django.urls import reverse
from django.utils import timezone

from adiuva.accounts import addresses
from adiuva.accounts.keys import cipher_for, lock_user
from adiuva.accounts.models import RevokedReason, Session
from adiuva.core import public_http
from adiuva.core.errors import Conflict, Invalid, NotFound
from billing import entitlements
from billing.sso import domain_rechecks, domains, events, mails, oidc
from billing.sso.models import Domain, Identity, IdentityProvider, SsoEvent, SsoSession
from billing.teams import members
from billing.teams.models import Membership, Team

_MOST_DOMAINS: Final = 20
_MAX_CHARS: Final = 255
Kind = SsoEvent.Kind


class NoProvider(NotFound):
    def __init__(self) -> None:
        super().__init__("this team has no single sign-on")


class NoSuchDomain(NotFound):
    def __init__(self) -> None:
        super().__init__("there is no such domain")


class NotReady(Conflict):
    """It cannot be required yet."""

    code = "sso_not_ready"


class DomainTaken(Conflict):
    code = "domain_taken"

    def __init__(self) -> None:
        super().__init__("another team has proven this domain, and its record is still there")


def redirect_uri() -> str:
    """Return the address to which a provider sends the browser back. It must be registered there exactly like this."""
    return settings.PUBLIC_URL + reverse("sso-callback")


def client_of(provider: IdentityProvider) -> oidc.Client:
    """Return the client of a provider, with the secret opened by the key of the team's owner."""
    cipher = cipher_for(provider.team.owner_id)
    secret = IdentityProvider.secret.unseal_from(cipher, provider)
    return oidc.Client(provider.issuer, provider.client_id, secret)


def of_owner(owner_id: UUID) -> IdentityProvider:
    """Return the provider of an owner's team. Raises NoProvider."""
    found = IdentityProvider.objects.select_related("team").filter(team__owner_id=owner_id).first()
    if found is None:
        raise NoProvider
    return found


def describe(owner_id: UUID) -> dict[str, Any]:
    """Describe the settings for the owner, without the secret.

    Without a provider all but `redirect_uri` is empty: that one is needed first, to register at the provider.
    """
    provider = IdentityProvider.objects.filter(team__owner_id=owner_id).first() or IdentityProvider()
    return {
        "issuer": provider.issuer,
        "client_id": provider.client_id,
        "redirect_uri": redirect_uri(),
        "is_required": provider.is_required,
        "worked_at": provider.worked_at,
        "domains": [described(domain) for domain in Domain.objects.filter(provider=provider.pk)],
    }


def described(domain: Domain) -> dict[str, Any]:
    place, text = domains.record_of(domain.name, domain.token)
    return {
        "id": domain.pk,
        "name": domain.name,
        "proven_at": domain.proven_at,
        "missing_since": domain.missing_since,
        "record_name": place,
        "record_value": text,
    }


# ── The provider ──────────────────────────────────────────────────────────────────────────────────────────


def set_provider(*, owner_id: UUID, issuer: str, client_id: str, secret: str = "") -> IdentityProvider:
    """Set or change the provider, after asking the issuer for its metadata. Without a secret the present one stays.
    Blocks.

    Raises NotInPlan, NoTeam, Invalid, SsoMisconfigured, SsoAway.
    """
    entitlements.require(owner_id, "sso")
    issuer, client_id = issuer.strip(), client_id.strip()
    _check_values(issuer, client_id, secret)
    oidc.discover(issuer, anew=True)
    with transaction.atomic():
        lock_user(owner_id)
        team = _team_of(owner_id)
        provider = IdentityProvider.objects.filter(team=team).first() or IdentityProvider(team=team)
        is_other = (provider.issuer, provider.client_id) != (issuer, client_id)
        if is_other and not secret:
            raise Invalid("secret: it is missing.", fields={"secret": ["Enter the secret of this client."]})
        provider.issuer, provider.client_id = issuer, client_id
        changed = ["issuer", "client_id", "updated_at"]
        if secret:
            changed.append("secret")
            IdentityProvider.secret.seal_into(cipher_for(owner_id), provider, secret)
        if is_other:
            provider.worked_at, provider.is_required = None, False
            changed += ["worked_at", "is_required"]
            SsoSession.objects.filter(provider=provider).update(provider=None)
        # Not the other columns: staff who take a requirement back, and sign-ins, write them without this lock.
        provider.save(update_fields=None if provider._state.adding else changed)
        if is_other:
            Identity.objects.filter(provider=provider).delete()
        events.note(team.pk, Kind.SET, user_id=owner_id)
    return provider


def _team_of(owner_id: UUID) -> Team:
    found = Team.objects.filter(owner_id=owner_id).first()
    if found is None:
        raise members.NoTeam
    return found


def _check_values(issuer: str, client_id: str, secret: str) -> None:
    try:
        address = public_http.checked(issuer, public_http.networks_of(settings.SSO_NETWORKS))
        if address.query or len(issuer) > 500:
            raise public_http.AddressRefused("an issuer has no query")
    except public_http.AddressRefused:
        raise Invalid(
            "issuer: enter its address, which begins with https.",
            fields={"issuer": ["Enter its address, which begins with https."]},
        ) from None
    for name, value in (("client_id", client_id), ("secret", secret)):
        if len(value) > _MAX_CHARS or not value.isprintable() or (name == "client_id" and not value):
            raise Invalid(
                "this value cannot be used", fields={name: ["It has 1 to 255 printable characters."]}
            )


@transaction.atomic
def remove_provider(*, owner_id: UUID) -> None:
    """Remove the provider. Members sign in by password again; sessions opened through it end at their next refresh."""
    lock_user(owner_id)
    provider = of_owner(owner_id)
    events.note(provider.team_id, Kind.REMOVED, user_id=owner_id)
    provider.delete()


# ── Domains ───────────────────────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def add_domain(*, owner_id: UUID, name: str) -> Domain:
    """Add a domain, even one that another team has proven: then the DNS decides.

    Raises NoProvider, Invalid, Conflict.
    """
    provider = of_owner(owner_id)
    IdentityProvider.objects.select_for_update(no_key=True).get(pk=provider.pk)
    wanted = _domain_name(name)
    found = provider.domains.filter(name=wanted).first()
    if found is None:
        if provider.domains.count() >= _MOST_DOMAINS:
            raise Conflict("a team has at most 20 domains")
        found = Domain.objects.create(provider=provider, name=wanted, token=secrets.token_urlsafe(24))
        events.note(provider.team_id, Kind.DOMAIN_ADDED, user_id=owner_id, code=str(found.pk))
    return found


def _domain_name(name: str) -> str:
    try:
        _, _, found = addresses.normalize(f"x@{name.strip().removesuffix('.')}").rpartition("@")
    except addresses.AddressInvalid:
        found = ""
    labels = found.split(".")
    is_name = all(
        label.replace("-", "").isalnum() and label.isascii() and len(label) < 64 for label in labels
    )
    if len(labels) < 2 or not is_name or labels[-1].isdigit():
        raise Invalid(
            "name: this is not a domain.", fields={"name": ["Enter a domain, such as example.com."]}
        )
    return found


def prove_domain(*, owner_id: UUID, domain_id: UUID) -> Domain:
    """Prove a domain by its DNS record. A team that has proven it before, and whose record is gone, loses it.
    Blocks.

    Raises NoProvider, NoSuchDomain, DomainUnproven, DomainTaken, DnsAway.
    """
    found = _domain_of(owner_id, domain_id)
    if found.proven_at is not None:
        return found
    domains.require_proven(found.name, found.token)
    if not domain_rechecks.lose_if_gone(found.name):
        raise DomainTaken
    try:
        with transaction.atomic():
            found.proven_at = timezone.now()
            if not Domain.objects.filter(pk=found.pk).update(proven_at=found.proven_at):
                raise NoSuchDomain  # removed while its record was read
            events.note(found.provider.team_id, Kind.DOMAIN_PROVEN, user_id=owner_id, code=str(found.pk))
    except IntegrityError:
        raise DomainTaken from None
    return found


@transaction.atomic
def remove_domain(*, owner_id: UUID, domain_id: UUID) -> None:
    """Remove a domain: its addresses can no longer sign in this way. Raises NoSuchDomain."""
    found = _domain_of(owner_id, domain_id)
    events.note(found.provider.team_id, Kind.DOMAIN_REMOVED, user_id=owner_id, code=str(found.pk))
    found.delete()


def _domain_of(owner_id: UUID, domain_id: UUID) -> Domain:
    found = of_owner(owner_id).domains.select_related("provider").filter(pk=domain_id).first()
    if found is None:
        raise NoSuchDomain
    return found


# ── Requiring it ────────────────────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def require(*, owner_id: UUID, is_required: bool) -> None:
    """Let members of the proven domains sign in this way alone, or also by password. The owner keeps the password.

    When this begins, sessions that members opened otherwise end. Raises NotInPlan, NoProvider, NotReady.
    """
    provider = of_owner(owner_id)
    if is_required:
        entitlements.require(owner_id, "sso")
        if not provider.domains.filter(proven_at__isnull=False).exists():
            raise NotReady("prove a domain first")
        if provider.worked_at is None:
            raise NotReady("sign in this way once yourself first, so that nobody is locked out")
    set_required(provider, is_required, by=owner_id)


def set_required(provider: IdentityProvider, required: bool, *, by: UUID) -> None:
    """Set whether it is required, without conditions; staff take it back where an owner cannot."""
    if not IdentityProvider.objects.filter(pk=provider.pk, is_required=not required).update(
        is_required=required
    ):
        return
    events.note(provider.team_id, Kind.REQUIRED if required else Kind.OPTIONAL, user_id=by)
    if not required:
        mails.forget_required(provider)
    else:
        held = held_members(provider)
        mails.order_of_required(provider, held)
        mine = Session.objects.filter(user_id__in=held, expires_at__gt=timezone.now())
        mine.filter(sso__isnull=True).end(RevokedReason.SSO)


def held_members(provider: IdentityProvider) -> list[UUID]:
    """Return the members who must use it: those with addresses of a proven domain."""
    names = {domain.name for domain in provider.domains.all() if domain.proven_at}
    seated = Membership.objects.seated().filter(team_id=provider.team_id)
    return [
        user_id
        for user_id, email in seated.values_list("user_id", "user__email")
        if user_id and email.rpartition("@")[2] in names
    ]
