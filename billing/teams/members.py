"""Membership of teams: owners and members invite, accept, remove, leave, and see the team."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import structlog
from django.conf import settings
from django.core import signing
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.accounts import addresses, mails
from adiuva.accounts.keys import cipher_for
from adiuva.accounts.models import Mail, User
from adiuva.core.errors import Conflict, Invalid, NotFound
from billing import entitlements, plans, tiers
from billing.teams import seats
from billing.teams.models import INVITATION_LASTS, Membership, Team

_SALT: Final = "adiuva invitation to a team"
_MAX_CHARS: Final = 400
_MAX_NAME: Final = 100
# Without a limit on seats, as many members as anybody can read through.
_MOST_MEMBERS: Final = 1000

State = Membership.State
log = structlog.get_logger(__name__)


class InATeam(Conflict):
    code = "in_a_team"


class NoTeam(NotFound):
    def __init__(self) -> None:
        super().__init__("this account has no team")


class NoSuchMember(NotFound):
    def __init__(self) -> None:
        super().__init__("there is no such member or invitation")


class InvitationInvalid(NotFound):
    code = "invitation_invalid"

    def __init__(self) -> None:
        super().__init__("this invitation was accepted, taken back, or is too old")


# ── The team ────────────────────────────────────────────────────────────────────────────────────────────


def describe(user_id: UUID) -> dict[str, Any]:
    """Return the team that a user owns or is in, as GET /billing/team answers it. Raises NoTeam.

    An owner sees all of it, even before anybody is invited; a member sees its name and its owner.
    """
    mine = Membership.objects.of(user_id).select_related("team__owner").first()
    if mine is not None:
        return {"id": mine.team_id, "name": mine.team.name, "role": "member", "owner": mine.team.owner.email,
                "state": mine.state, "seats": None, "seats_taken": None, "members": []}  # fmt: skip
    owner = User.objects.filter(pk=user_id).first()
    team = Team.objects.filter(owner_id=user_id).first()
    number = seats.of_owner(user_id)
    if owner is None or (team is None and number == 0):
        raise NoTeam
    rows = list(_shown(team)) if team else []
    return {
        "id": team.pk if team else None,
        "name": team.name if team else "",
        "role": "owner",
        "owner": owner.email,
        "state": State.ACTIVE,
        "seats": number,
        "seats_taken": seats.taken(team),
        "members": [_row(owner.email, "owner", State.ACTIVE, owner.created_at), *rows],
    }


def _shown(team: Team) -> Any:
    for each in team.memberships.select_related("user").order_by("joined_at", "invited_at", "id"):
        is_old = each.state == State.INVITED and each.invited_at < timezone.now() - INVITATION_LASTS
        yield _row(
            each.user.email if each.user else each.address,
            "member",
            "expired" if is_old else each.state,
            each.joined_at or each.invited_at,
            each.pk,
        )


def _row(address: str, role: str, state: str, since: Any, pk: UUID | None = None) -> dict[str, Any]:
    return {"id": pk, "email": address, "role": role, "state": state, "since": since}


@transaction.atomic
def rename(*, owner_id: UUID, name: str) -> Team:
    """Rename an owner's team. Raises NoTeam, Invalid."""
    name = "".join(filter(str.isprintable, name)).strip()
    if not 1 <= len(name) <= _MAX_NAME:
        raise Invalid("name: it has 1 to 100 characters.", fields={"name": ["It has 1 to 100 characters."]})
    seats.lock(owner_id)
    team = _own_team(owner_id)
    Team.name_sealed.seal_into(cipher_for(owner_id), team, name)
    team.save(update_fields=["name_sealed"])
    return team


def _own_team(owner_id: UUID) -> Team:
    """Return the owner's team, made at its first use. Raises NoTeam, InATeam. The owner is locked."""
    team = Team.objects.filter(owner_id=owner_id).first()
    if team is not None:
        return team
    if Membership.objects.of(owner_id).exists():
        raise InATeam("you are a member of another team: leave it first")
    if seats.of_owner(owner_id) == 0:
        raise NoTeam
    return Team.objects.create(owner_id=owner_id)


# ── Invitations ─────────────────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def invite(*, owner_id: UUID, email: str) -> Membership:
    """Invite an address, and keep a seat free for it. A second call mails the same invitation again.

    Raises Invalid, InATeam, QuotaExceeded.
    """
    address = _valid(email)
    seats.lock(owner_id)
    if address == User.objects.values_list("email", flat=True).get(pk=owner_id):
        raise Invalid("email: this is your own address.", fields={"email": ["This is your own address."]})
    if seats.of_owner(owner_id) == 0 and not Membership.objects.of(owner_id).exists():
        _require_seat(owner_id, None, 1)
    team = _own_team(owner_id)
    if team.memberships.filter(user__email=address).exists():
        raise InATeam("this address is a member of the team already")
    found = team.memberships.filter(state=State.INVITED, address=address).first()
    if found is None or found.invited_at < timezone.now() - INVITATION_LASTS:
        _require_seat(owner_id, team, 1)
    if found is None:
        found = Membership.objects.create(team=team, address=address)
    else:
        Membership.objects.filter(pk=found.pk).update(invited_at=Now())
    found.refresh_from_db()
    # One mail that waits to be sent is enough, however many times it is ordered.
    if not Mail.objects.filter(kind=Mail.Kind.TEAM_INVITATION, about=found.pk).exists():
        mails.order(Mail.Kind.TEAM_INVITATION, user=team.owner, address=address, about=found.pk)
    log.info("team.invited", team_id=str(team.pk), membership_id=str(found.pk))
    return found


def _valid(email: str) -> str:
    try:
        address = addresses.normalize(email)
        validate_email(address)
    except (addresses.AddressInvalid, ValidationError):
        raise Invalid(
            "email: enter a valid address.", fields={"email": ["Enter a valid email address."]}
        ) from None
    return address


def _require_seat(owner_id: UUID, team: Team | None, n: int, *, without: int = 0) -> None:
    """Raise QuotaExceeded unless `n` seats are free. `without`: this many of the taken seats do not count."""
    limit, used = seats.of_owner(owner_id), seats.taken(team) - without
    if limit is None:
        limit = _MOST_MEMBERS
    if used + n <= limit:
        return
    tier = User.objects.values_list("tier", flat=True).get(pk=owner_id)
    upgrade = next((plan.tier for plan in plans.by_tier().values() if plan.per_seat), None)
    used = min(used, limit)
    raise entitlements.QuotaExceeded("seats", limit=limit, used=used, tier=tier, upgrade_to=upgrade)


def link_of(invitation: Membership, site: str = "") -> str:
    """Return the address of the page on which an invitation is accepted; anybody who has it can accept."""
    token = signing.dumps([invitation.pk.hex, invitation.address], salt=_SALT)
    return f"{site or settings.PUBLIC_URL}/account/team?invitation={token}"


def read_invitation(token: str) -> Membership:
    """Return the open invitation of a link, with its team. Raises InvitationInvalid."""
    if not token.isascii() or len(token) > _MAX_CHARS:
        raise InvitationInvalid
    try:
        pk, address = signing.loads(token, salt=_SALT, max_age=INVITATION_LASTS)
    except signing.BadSignature:
        raise InvitationInvalid from None
    found = Membership.objects.invited().filter(pk=pk, address=address).select_related("team__owner").first()
    if found is None:
        raise InvitationInvalid
    return found


@transaction.atomic
def accept(*, user_id: UUID, token: str) -> Membership:
    """Take the seat that was kept free. Raises InvitationInvalid, InATeam, QuotaExceeded."""
    owner_id = read_invitation(token).team.owner_id
    seats.lock(owner_id)
    invitation = read_invitation(token)  # as it is, now that nobody changes it
    return _sit_down(invitation.team, user_id, invitation)


@transaction.atomic
def join(*, team_id: UUID, user_id: UUID) -> Membership:
    """Give a user a free seat of a team, or the one that is kept free for their confirmed address.

    Returns a member's existing membership unchanged. Raises NoTeam, InATeam, QuotaExceeded, NoSuchUser.
    """
    team = Team.objects.filter(pk=team_id).first()
    if team is None:
        raise NoTeam
    seats.lock(team.owner_id)
    mine = Membership.objects.of(user_id).filter(team=team).first()
    if mine is not None:
        return mine
    confirmed = User.objects.filter(pk=user_id, email_verified_at__isnull=False).values_list(
        "email", flat=True
    )
    kept = (team.memberships.all() & Membership.objects.invited()).filter(address__in=confirmed).first()
    return _sit_down(team, user_id, kept)


def _sit_down(team: Team, user_id: UUID, invitation: Membership | None) -> Membership:
    """Give a user a seat. Locks the owner, and then the member. An expired invitation counts as none."""
    # Before the lock as well: two owners who accept each other's invitations would wait for each other.
    _require_no_team(user_id)
    seats.lock(user_id)
    _require_no_team(user_id)
    if Membership.objects.of(user_id).exists():
        raise InATeam("you are a member of another team: leave it first")
    _require_seat(team.owner_id, team, 1, without=1 if invitation else 0)
    found = invitation or Membership(team=team)
    found.user_id, found.address, found.state, found.joined_at = user_id, "", State.ACTIVE, timezone.now()
    found.save()
    log.info("team.joined", team_id=str(team.pk), user_id=str(user_id))
    tiers.recompute(user_id)
    return found


def _require_no_team(user_id: UUID) -> None:
    if Team.objects.filter(owner_id=user_id).exists():
        raise InATeam("you have a team of your own")


# ── The end of a membership ─────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def remove(*, owner_id: UUID, membership_id: UUID) -> None:
    """End a membership or take an invitation back. The member's data stays theirs. Raises NoSuchMember."""
    seats.lock(owner_id)
    found = Membership.objects.filter(pk=membership_id, team__owner_id=owner_id).first()
    if found is None:
        raise NoSuchMember
    _end(found, owner_id)


@transaction.atomic
def leave(*, user_id: UUID) -> None:
    """End one's own membership. Raises NoTeam."""
    mine = Membership.objects.of(user_id).select_related("team").first()
    if mine is None:
        raise NoTeam
    seats.lock(mine.team.owner_id)
    again = Membership.objects.of(user_id).filter(pk=mine.pk).first()
    if again is None:
        raise NoTeam
    _end(again, mine.team.owner_id)


def _end(membership: Membership, owner_id: UUID) -> None:
    user_id, team_id = membership.user_id, membership.team_id
    there = seats.lock_members([user_id])
    membership.delete()
    log.info("team.left", team_id=str(team_id), user_id=str(user_id or ""))
    seats.settle(owner_id)
    if user_id in there:
        tiers.recompute(user_id)


def dissolve(owner_id: UUID) -> None:
    """Dissolve a team, in the transaction that deletes its owner's account: members fall back to plans of their own."""
    members = Membership.objects.filter(team__owner_id=owner_id, user__isnull=False)
    there = seats.lock_members(members.values_list("user_id", flat=True))
    Team.objects.filter(owner_id=owner_id).delete()
    for user_id in there:
        tiers.recompute(user_id)
