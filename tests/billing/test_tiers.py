"""A user's plan, and the sources that grant it."""

from __future__ import annotations

import datetime as dt
import uuid

import pytest
from django.db import connection
from django.utils import timezone

from adiuva.accounts.models import User
from billing import tiers
from billing.models import Override
from billing.teams.models import Membership, Team
from tests.factories import somebody

pytestmark = pytest.mark.django_db
STAFF = uuid.uuid4()
DAY = dt.timedelta(days=1)


def tier_of(user_id: uuid.UUID) -> str:
    return User.objects.values_list("tier", flat=True).get(pk=user_id)


def give(user_id: uuid.UUID, tier: str, until: dt.datetime | None = None) -> Override:
    return tiers.give(user_id=user_id, tier=tier, until=until, reason="a trial", by=STAFF)


def test_the_largest_plan_that_is_given_counts_until_it_ends() -> None:
    mara = somebody().id
    assert tier_of(mara) == "free"
    power = give(mara, "power")
    give(mara, "pro", timezone.now() + DAY)
    assert tier_of(mara) == "power"
    assert tiers.end(override=power)
    assert tier_of(mara) == "pro"
    assert not tiers.end(override=power)


def test_the_sweep_ends_what_time_has_ended_and_finds_nothing_more() -> None:
    late, lasting, never = somebody().id, somebody().id, somebody(tier="team").id
    given = give(late, "pro", timezone.now() + DAY)
    give(lasting, "pro", timezone.now() + DAY)
    past = timezone.now() - dt.timedelta(seconds=1)
    Override.objects.filter(pk=given.pk).update(created_at=past - DAY, until=past)
    assert {late, never} <= set(tiers.differences())  # one plan was written by nobody who may
    assert tiers.sweep() >= 1  # other tests leave users as well
    assert [tier_of(user) for user in (late, lasting, never)] == ["free", "pro", "team"]
    assert tiers.check() >= 1
    assert [tier_of(user) for user in (late, lasting, never)] == ["free", "pro", "free"]
    assert not {late, lasting, never} & set(tiers.differences())


def test_the_sweep_ends_seats_with_the_plan_of_their_team() -> None:
    owner, member = somebody().id, somebody().id
    given = give(owner, "team", timezone.now() + DAY)
    team = Team.objects.create(owner_id=owner)
    Membership.objects.create(
        team=team, user_id=member, state=Membership.State.ACTIVE, joined_at=timezone.now()
    )
    assert tiers.recompute(member) == "team"
    past = timezone.now() - dt.timedelta(hours=30)
    Override.objects.filter(pk=given.pk).update(created_at=past - DAY, until=past)
    tiers.sweep()
    assert [tier_of(user) for user in (owner, member)] == ["free", "free"]
    assert tiers.sweep() == 0


def test_the_sweep_looks_at_an_index_and_at_nobody_whose_plan_goes_on() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {tiers._ENDED_LATELY}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "overrides_that_end" in plan and "subscriptions_in_grace" in plan and "Seq Scan" not in plan


def test_a_plan_that_the_sweep_did_not_write_yet_is_found() -> None:
    mara = somebody().id
    Override.objects.create(user_id=mara, tier="pro", reason="by hand", by=STAFF)
    assert mara in tiers.differences()  # beside what other tests left
    assert tiers.recompute(mara) == "pro" == tier_of(mara)
