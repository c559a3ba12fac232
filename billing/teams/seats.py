"""Assignment of a team's seats: to the owner, then to members in the order in which they joined.

All changes of seats or members lock the owner's account first, then the accounts of members, then memberships. An owner
is no member of another team; that is checked before they are locked as one, so that nobody waits for each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce

from adiuva.accounts.keys import NoSuchUser
from adiuva.accounts.models import User
from adiuva.core import db
from billing import tiers
from billing.models import Override, Plan
from billing.payments.models import StripeJob, Subscription
from billing.teams.models import Membership, Team

_WISHES: Final = (*StripeJob.OPEN, StripeJob.State.DONE)

log = structlog.get_logger(__name__)


def lock(owner_id: UUID) -> None:
    """Lock the account that pays for a team, until the transaction ends. Raises NoSuchUser."""
    if not User.objects.select_for_update(no_key=True).filter(pk=owner_id).values_list("pk"):
        raise NoSuchUser("this account no longer exists")


def lock_members(user_ids: Iterable[UUID | None]) -> set[UUID]:
    """Lock the accounts of members, after their owner's. Returns the existing ones: others are being deleted."""
    users = User.objects.filter(pk__in=[user_id for user_id in user_ids if user_id is not None])
    return set(users.order_by("pk").select_for_update(no_key=True).values_list("pk", flat=True))


def of_owner(owner_id: UUID) -> int | None:
    """Return how many seats there are, the owner's among them. None: any number, where plans limit nothing.

    While a change of the number is on its way, the smaller of both counts.
    """
    if not settings.PLANS:
        return None
    plans = list(Plan.objects.filter(per_seat=True).values_list("tier", flat=True))
    paid = Subscription.objects.of(owner_id).giving().filter(tier__in=plans).first()
    given = Override.objects.of(owner_id).live().filter(tier__in=plans).exists()
    seats = 0
    if paid is not None:
        wished = _wished(paid)
        seats = paid.quantity if wished is None else min(paid.quantity, wished)
    if given:
        by_staff = Team.objects.filter(owner_id=owner_id).values_list("seats_given", flat=True).first() or 0
        seats = max(seats, by_staff, 1)
    return seats


def _wished(paid: Subscription) -> int | None:
    """Return the number that was requested last, if our copy may not show it yet."""
    wishes = StripeJob.objects.filter(kind=StripeJob.Kind.SEATS, subject=paid.stripe_id, state__in=_WISHES)
    latest = wishes.order_by("-created_at").first()
    if latest is None or (latest.state == StripeJob.State.DONE and paid.synced == paid.wanted):
        return None
    return int(latest.detail["seats"])


def taken(team: Team | None) -> int:
    """Count the seats that are taken or kept free for invited people; one of them by the owner."""
    return 1 + (team.memberships.all() & Membership.objects.taking_seats()).count() if team else 1


@transaction.atomic
def settle(owner_id: UUID) -> int:
    """Give the existing seats to members in the order in which they joined. Returns how many lost or got one.

    A member without a seat keeps everything, on a plan of their own. Raises NoSuchUser.
    """
    lock(owner_id)
    team = Team.objects.filter(owner_id=owner_id).first()
    if team is None:
        return 0
    seats = of_owner(owner_id)
    members = list(team.memberships.exclude(state=Membership.State.INVITED).order_by("joined_at", "id"))
    room = len(members) if seats is None else max(0, seats - 1)
    changed = []
    for place, member in enumerate(members):
        state = Membership.State.ACTIVE if place < room else Membership.State.OVER_LIMIT
        if member.state != state:
            member.state = state
            changed.append(member)
    there = lock_members([member.user_id for member in changed])
    changed = [member for member in changed if member.user_id in there]
    Membership.objects.bulk_update(changed, ["state"])
    for member in changed:
        assert member.user_id is not None  # a constraint
        log.info("team.seat_changed", team_id=str(team.pk), user_id=str(member.user_id), state=member.state)
        tiers.recompute(member.user_id)
    return len(changed)


def _with_too_few_seats() -> QuerySet[Team]:
    """Return teams that have more members on seats than is paid for, and no plan of staff's that gives them more."""
    plans, owner = Plan.objects.filter(per_seat=True).values("tier"), OuterRef("owner_id")
    given = Override.objects.live().filter(user_id=owner, tier__in=plans)
    paid = Subscription.objects.giving().filter(user_id=owner, tier__in=plans).values("quantity")[:1]
    seated = Count("memberships", filter=Q(memberships__state=Membership.State.ACTIVE))
    short = Team.objects.filter(~Exists(given)).alias(seated=seated)
    return short.filter(seated__gte=Coalesce(Subquery(paid), 1))  # one seat is the owner's


def sweep() -> int:
    """Give away seats that became free by themselves, as when a member's account is deleted, and take those that ended
    by themselves, as with a plan that staff gave."""
    waiting = Team.objects.filter(memberships__state=Membership.State.OVER_LIMIT)
    owners = set(waiting.values_list("owner_id", flat=True))
    if settings.PLANS:
        owners.update(_with_too_few_seats().values_list("owner_id", flat=True))
    changed = 0
    for owner_id in owners:
        try:
            with db.conflicts_put_off("team.not_settled", user_id=str(owner_id)):
                changed += settle(owner_id)
        except NoSuchUser:
            continue
    return changed
