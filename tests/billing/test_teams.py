"""Seats and members of a team: who is in, who loses a seat, and that no seat is given twice."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections
from django.db.models.functions import Now
from django.utils.timezone import now

from adiuva.accounts import services
from adiuva.accounts.models import User
from billing import tiers
from billing.entitlements import QuotaExceeded
from billing.models import Customer
from billing.payments.models import Subscription
from billing.teams import members, seats
from billing.teams.models import Membership, Team
from tests.factories import Person, somebody

pytestmark = pytest.mark.usefixtures("committed_db", "plans_on")


@pytest.fixture
def plans_on(settings: Any) -> None:
    settings.PLANS = True


def owner_of(number: int) -> Person:
    """Somebody to whom staff gave a team of so many seats."""
    owner = somebody()
    tiers.give(user_id=owner.id, tier="team", until=None, reason="a test", by=uuid.uuid4())
    Team.objects.create(owner_id=owner.id, seats_given=number)
    return owner


def seat(owner: Person, person: Person | None = None) -> Person:
    """Somebody who was invited and accepted."""
    person = person or somebody()
    invitation = members.invite(owner_id=owner.id, email=f"{uuid.uuid4().hex}@crew.example")
    members.accept(user_id=person.id, token=members.link_of(invitation).partition("=")[2])
    return person


def tier_of(person: Person) -> str:
    return User.objects.get(pk=person.id).tier


def give_seats(owner: Person, number: int) -> None:
    Team.objects.filter(owner_id=owner.id).update(seats_given=number)
    seats.settle(owner.id)


def test_a_seat_gives_the_plan_and_who_loses_it_falls_back_to_their_own() -> None:
    owner = owner_of(3)
    first, second = seat(owner), somebody()
    tiers.give(user_id=second.id, tier="pro", until=None, reason="a test", by=uuid.uuid4())
    seat(owner, second)
    assert (tier_of(first), tier_of(second)) == ("team", "team")
    give_seats(owner, 2)
    assert (tier_of(first), tier_of(second)) == ("team", "pro")  # the newest loses it
    assert Membership.objects.get(user_id=second.id).state == "over_limit"
    give_seats(owner, 3)
    assert tier_of(second) == "team"
    members.leave(user_id=first.id)
    assert tier_of(first) == "free" and not Membership.objects.of(first.id).exists()


def test_whoever_waits_without_a_seat_gets_the_one_that_becomes_free() -> None:
    owner = owner_of(3)
    first, second = seat(owner), seat(owner)
    give_seats(owner, 2)
    members.remove(owner_id=owner.id, membership_id=Membership.objects.get(user_id=first.id).pk)
    assert (tier_of(first), tier_of(second)) == ("free", "team")
    give_seats(owner, 3)
    third = seat(owner)
    give_seats(owner, 2)
    services.delete_account(user=User.objects.get(pk=second.id))
    seats.sweep()
    assert tier_of(third) == "team"


@pytest.mark.parametrize("by_staff", [True, False])
def test_seats_that_staff_gave_end_with_the_plan_that_they_gave(by_staff: bool) -> None:
    owner = owner_of(4)
    first, second, third = seat(owner), seat(owner), seat(owner)
    customer = Customer.objects.create(stripe_id=f"cus_{uuid.uuid4().hex}", user_id=owner.id)
    paid = {"user_id": owner.id, "customer": customer, "tier": "team", "status": "active", "quantity": 3}
    Subscription.objects.create(stripe_id=f"sub_{uuid.uuid4().hex}", started_at=now(), **paid)
    seats.sweep()
    assert tier_of(third) == "team"
    if by_staff:
        tiers.end(override=owner_overrides(owner).get())
    else:
        owner_overrides(owner).update(until=Now())
        tiers.sweep()
    seats.sweep()
    assert [tier_of(each) for each in (owner, first, second, third)] == ["team", "team", "team", "free"]
    assert owner.id not in seats._with_too_few_seats().values_list("owner_id", flat=True)
    members.leave(user_id=first.id)
    assert tier_of(third) == "team"


def test_members_fall_back_when_the_owner_ends_the_plan_or_the_account() -> None:
    owner = owner_of(2)
    member = seat(owner)
    (given,) = owner_overrides(owner)
    tiers.end(override=given)
    assert tier_of(member) == "free"
    tiers.give(user_id=owner.id, tier="team", until=None, reason="a test", by=uuid.uuid4())
    assert tier_of(member) == "team"
    services.delete_account(user=User.objects.get(pk=owner.id))
    assert tier_of(member) == "free" and not Membership.objects.of(member.id).exists()
    assert tiers.differences() == [] or member.id not in tiers.differences()


def owner_overrides(owner: Person) -> Any:
    from billing.models import Override

    return Override.objects.of(owner.id).live()


def test_an_invitation_keeps_a_seat_free_and_is_accepted_once() -> None:
    owner, guest = owner_of(2), somebody()
    invitation = members.invite(owner_id=owner.id, email="Guest@crew.example")
    assert members.invite(owner_id=owner.id, email="guest@Crew.example").pk == invitation.pk
    with pytest.raises(QuotaExceeded):
        members.invite(owner_id=owner.id, email="other@crew.example")
    token = members.link_of(invitation).partition("=")[2]
    members.accept(user_id=guest.id, token=token)
    for person in (guest, somebody()):
        with pytest.raises(members.InvitationInvalid):
            members.accept(user_id=person.id, token=token)
    for bad in ("", "x", token + "x", "é"):
        with pytest.raises(members.InvitationInvalid):
            members.accept(user_id=guest.id, token=bad)


def test_an_owner_joins_nobody_elses_team_and_a_member_no_second() -> None:
    owner, other = owner_of(3), owner_of(3)
    with pytest.raises(members.InATeam):
        seat(owner, other)
    member = seat(owner)
    with pytest.raises(members.InATeam):
        seat(other, member)
    with pytest.raises(members.InATeam):
        members.invite(owner_id=member.id, email="third@crew.example")


def test_no_seat_is_given_twice_whoever_comes_at_once() -> None:
    owner, people = owner_of(4), [somebody() for _ in range(12)]
    team = Team.objects.get(owner_id=owner.id)

    def come(place: int) -> bool:
        try:
            if place % 2:
                members.join(team_id=team.pk, user_id=people[place].id)
            else:
                members.invite(owner_id=owner.id, email=f"guest{place}@crew.example")
        except QuotaExceeded:
            return False
        else:
            return True
        finally:
            connections.close_all()

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(come, range(12))) == 3
    assert seats.taken(team) == 4
