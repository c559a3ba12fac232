"""Decides who must use single sign-on, and which sessions go on; accounts call it (adiuva.accounts.sign_in_rules)."""

from __future__ import annotations

import datetime as dt
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.accounts.keys import cipher_for
from adiuva.accounts.models import RevokedReason, Session, User
from adiuva.accounts.sign_in_rules import Way
from adiuva.core.crypto import SealBroken
from adiuva.core.errors import Forbidden, NotAuthenticated
from adiuva.core.logging import log_failure
from billing import entitlements
from billing.sso import configuration, events, oidc
from billing.sso.errors import SsoAway, SsoMisconfigured, SsoRefused
from billing.sso.models import IdentityProvider, SsoEvent, SsoSession
from billing.teams.models import Membership

# A request to a provider that began this long ago counts as lost: another may ask.
_ASKING: Final = dt.timedelta(seconds=30)


class SsoRequired(Forbidden):
    """The password is right, but the account's team does not let anybody in by it."""

    code = "sso_required"

    def __init__(self) -> None:
        super().__init__("your team signs in through your organisation, not by password or passkey")


class SsoSessionOver(NotAuthenticated):
    code = "sso_session_over"

    def __init__(self) -> None:
        super().__init__("your organisation no longer vouches for this session: sign in through it again")


def required_of(user_id: UUID) -> IdentityProvider | None:
    """Return the provider that this user must sign in through. None for an owner, so that there is a way back."""
    found = (
        IdentityProvider.objects.filter(
            is_required=True,
            team__memberships__user_id=user_id,
            team__memberships__state=Membership.State.ACTIVE,
        )
        .select_related("team")
        .first()
    )
    if found is None:
        return None
    email = User.objects.values_list("email", flat=True).get(pk=user_id)
    is_held = found.domains.filter(name=email.rpartition("@")[2], proven_at__isnull=False).exists()
    return found if is_held and is_in_plan(found.team.owner_id) else None


def is_in_plan(owner_id: UUID) -> bool:
    """Return whether the owner's plan includes it. A plan that ends must not lock anybody out."""
    try:
        entitlements.require(owner_id, "sso")
    except entitlements.NotInPlan:
        return False
    return True


def check_sign_in(user_id: UUID, way: Way) -> None:
    """Raise SsoRequired if the user may not sign in this way."""
    if way != "sso" and required_of(user_id) is not None:
        raise SsoRequired


def check_renewal(user_id: UUID, session_id: UUID) -> None:
    """End a session whose provider no longer vouches for it, and raise SsoSessionOver.

    Asks the provider now and then, and may block for seconds.
    """
    row = (
        SsoSession.objects.select_related("provider__team")
        .filter(session_id=session_id, session__user_id=user_id)
        .first()
    )
    if row is None:
        if required_of(user_id) is not None:
            Session.objects.filter(pk=session_id, user_id=user_id).end(RevokedReason.SSO)
            raise SsoSessionOver
        return
    if row.provider is None or not _has_place(row.provider, user_id):
        _end(row, user_id, "no_seat")
    elif timezone.now() - row.vouched_at >= settings.SSO_ASK_AGAIN:
        _ask_again(row, row.provider, user_id)


def _has_place(provider: IdentityProvider, user_id: UUID) -> bool:
    seated = Membership.objects.of(user_id).seated().filter(team_id=provider.team_id)
    return provider.team.owner_id == user_id or seated.exists()


def _ask_again(row: SsoSession, provider: IdentityProvider, user_id: UUID) -> None:
    if row.refresh_token is None:
        return _require_recent(row, user_id)
    # A provider may accept a refresh token only once: of several requests at once, one asks.
    idle = Q(asked_at__isnull=True) | Q(asked_at__lt=Now() - _ASKING)
    mine = SsoSession.objects.filter(pk=row.pk)
    if not mine.filter(idle, vouched_at=row.vouched_at).update(asked_at=Now()):
        return _require_recent(row, user_id)
    try:
        token = SsoSession.refresh_token.unseal_from(cipher_for(user_id), row)
        client = configuration.client_of(provider)
        meta = oidc.discover(provider.issuer)
        renewed = oidc.ask_again(client, meta, refresh_token=token, subject=row.subject)
    except oidc.NoLonger:
        return _leave(row, provider, user_id)
    except (SsoAway, SsoMisconfigured, SsoRefused, SealBroken) as error:
        log_failure("sso.not_asked_again", error, session_id=str(row.pk))
        mine.update(asked_at=None)
        return _require_recent(row, user_id)
    SsoSession.refresh_token.seal_into(cipher_for(user_id), row, renewed)
    mine.update(refresh_token=row.refresh_token, vouched_at=Now(), asked_at=None)
    return None


def _require_recent(row: SsoSession, user_id: UUID) -> None:
    """Let a session go on for a while without an answer of the provider, then end it."""
    if timezone.now() - row.vouched_at >= settings.SSO_LIFE:
        _end(row, user_id, "not_asked")


def _leave(row: SsoSession, provider: IdentityProvider, user_id: UUID) -> None:
    """End all sessions of this person at the provider, which no longer lets them in."""
    theirs = Session.objects.filter(user_id=user_id, sso__provider=provider, expires_at__gt=timezone.now())
    theirs.exclude(pk=row.session_id).end(RevokedReason.SSO)
    _end(row, user_id, "left")


def _end(row: SsoSession, user_id: UUID, why: str) -> None:
    ended = Session.objects.filter(pk=row.session_id).end(RevokedReason.SSO)
    if ended and row.provider is not None:
        events.note(row.provider.team_id, SsoEvent.Kind.SESSION_ENDED, user_id=user_id, code=why)
    raise SsoSessionOver
