"""Money for models: reserved before a request, settled after it, and never more than there is."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import connection, connections
from django.db.models import Sum
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from adiuva.accounts.models import User
from adiuva.llm import BudgetSpent, PriceMissing, WorkBudgetSpent
from adiuva.llm.prices import Price, Rates
from adiuva.llm.types import Usage
from billing import allowances, budget_sweep, budgets, plans, turn_holds, usage
from billing.budgets import BudgetedMeter
from billing.models import Allowance, Hold, Plan, Purpose, Use
from billing.months import month_of
from chat.models import Conversation, Turn
from chat.turn_ends import lose_turn
from tests.chat.factories import claim, finish_turn, make_conversation, make_request
from tests.factories import Person, somebody

CALL = 100  # what a request costs at most here, in micro-units
PRICE = Price(Rates(10**6, 10**6, 10**6, 10**6))  # a micro-unit a token


@pytest.fixture(autouse=True)
def limited(committed_db: None, settings: Settings) -> Iterator[None]:
    """Plans are on, and the free one has money for ten requests."""
    settings.PLANS = True
    before = Plan.objects.get(tier="free").budget_micro
    Plan.objects.filter(tier="free").update(budget_micro=10 * CALL)
    plans.forget()
    yield
    Plan.objects.filter(tier="free").update(budget_micro=before)
    plans.forget()


def meter_of(person: Person, purpose: Purpose = Purpose.CHAT, **how: Any) -> BudgetedMeter:
    meter = budgets.meter_for(person.id, purpose, **how)
    assert isinstance(meter, BudgetedMeter)
    return meter


async def request(meter: BudgetedMeter, cost: int = CALL, *, most: int = CALL) -> None:
    """A request that is admitted, made, and counted."""
    await meter.admit("a-model", most)
    meter.add("a-model", Usage(cost), PRICE, is_estimated=False, most_micro=most)


def settle(meter: BudgetedMeter) -> None:
    usage.settle(meter, meter.take(), is_over=True)


def own_month(person: Person) -> Allowance:
    return Allowance.objects.get(user=person.id, scope="user")


def test_what_is_used_is_paid_and_the_rest_is_free_again() -> None:
    person = somebody()
    meter = meter_of(person, keeps_answer=True)
    asyncio.run(request(meter, 30))
    assert (own_month(person).spent, own_month(person).reserved) == (0, 2 * CALL)  # a last answer is kept
    settle(meter)
    assert (own_month(person).spent, own_month(person).reserved) == (30, 0)
    assert not Hold.objects.filter(user_ref=person.id).exists()
    assert Use.objects.of(person.id).get().cost_micro == 30


def test_whoever_has_too_little_is_refused_and_nothing_stays_reserved() -> None:
    person = somebody()
    meter = meter_of(person)
    for _ in range(10):
        asyncio.run(request(meter))
    with pytest.raises(BudgetSpent):
        asyncio.run(meter.admit("a-model", CALL))
    settle(meter)
    with pytest.raises(BudgetSpent):
        asyncio.run(meter_of(person).admit("a-model", 1))
    assert (own_month(person).spent, own_month(person).reserved) == (10 * CALL, 0)


def test_a_last_answer_is_always_paid_for() -> None:
    person = somebody()
    meter = meter_of(person, keeps_answer=True)

    async def turn() -> int:
        asked = 0
        with suppress(BudgetSpent):
            while True:
                await request(meter)
                asked += 1
        meter.is_last = True
        await request(meter)
        return asked

    assert asyncio.run(turn()) == 9
    settle(meter)
    assert own_month(person).spent == 10 * CALL


def test_a_larger_plan_and_an_addition_by_staff_count_at_once() -> None:
    person = somebody()
    asyncio.run(request(meter_of(person), most=10 * CALL))
    with pytest.raises(BudgetSpent):
        asyncio.run(meter_of(person).admit("a-model", CALL))
    allowances.add(user_id=person.id, micro=CALL, reason="a bad day", by=uuid.uuid4())
    asyncio.run(meter_of(person).admit("a-model", CALL))
    with pytest.raises(BudgetSpent):
        asyncio.run(meter_of(person).admit("a-model", CALL))


def test_memory_has_a_share_and_an_agent_its_own_cap() -> None:
    person, agent = somebody(), uuid.uuid4()
    memory = meter_of(person, Purpose.MEMORY)
    asyncio.run(request(memory))
    with pytest.raises(BudgetSpent):
        asyncio.run(memory.admit("a-model", CALL))
    run = meter_of(person, Purpose.AGENTS, agent=agent, agent_cap=3 * CALL, ahead=16)
    for _ in range(3):
        asyncio.run(request(run))
    with pytest.raises(BudgetSpent):
        asyncio.run(run.admit("a-model", CALL))
    asyncio.run(meter_of(person).admit("a-model", CALL))  # the user has money still


def test_turns_that_follow_up_runs_take_a_fifth_of_the_month_at_most() -> None:
    """They hold no more than that at once either, and leave the rest to what the user says."""
    person, purpose = somebody(), Purpose.FOLLOWUPS
    assert allowances.has_room(person.id, purpose, None, None)
    first, second = meter_of(person, purpose, keeps_answer=True), meter_of(person, purpose)
    asyncio.run(request(first))  # and as much again is kept for its last answer
    with pytest.raises(BudgetSpent):
        asyncio.run(second.admit("a-model", 1))
    settle(first)
    asyncio.run(request(second, 95))
    settle(second)
    assert not allowances.has_room(person.id, purpose, None, None)
    share = Allowance.objects.get(user=person.id, scope="followups")
    assert (share.spent, share.reserved, own_month(person).spent) == (195, 0, 195)
    assert Use.objects.of(person.id).get().purpose == purpose
    assert allowances.has_room(person.id, Purpose.CHAT, None, None)
    asyncio.run(request(meter_of(person), most=8 * CALL))


def test_a_request_waits_for_what_those_under_way_leave() -> None:
    """Two may cost all that is left together. The second is made once the first has turned out cheap."""
    meter = meter_of(somebody())

    async def work() -> list[str]:
        seen: list[str] = []

        async def second() -> None:
            await meter.admit("a-model", 6 * CALL)
            seen.append("second")

        await meter.admit("a-model", 6 * CALL)
        task = asyncio.create_task(second())
        await asyncio.sleep(0.05)
        seen.append("first")
        meter.add("a-model", Usage(CALL), PRICE, is_estimated=False, most_micro=6 * CALL)
        await asyncio.wait_for(task, 10)
        return seen

    assert asyncio.run(work()) == ["first", "second"]


def test_what_a_request_leaves_that_ends_while_the_next_one_looks_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meter, reserve, refused = meter_of(somebody()), BudgetedMeter._reserve, []

    def look(self: BudgetedMeter, model: str, micro: int) -> bool:
        found = reserve(self, model, micro)
        if not found and not refused:
            refused.append(micro)
            self.add("a-model", Usage(CALL), PRICE, is_estimated=False, most_micro=6 * CALL)
        return found

    async def work() -> None:
        await meter.admit("a-model", 6 * CALL)
        await asyncio.wait_for(meter.admit("a-model", 6 * CALL), 10)

    monkeypatch.setattr(BudgetedMeter, "_reserve", look)
    asyncio.run(work())
    assert refused


@pytest.mark.parametrize(("purpose", "column"), [(Purpose.CHAT, "turn_micro"), (Purpose.AGENTS, "run_micro")])
def test_one_piece_of_work_has_a_limit_whatever_the_month_has_left(purpose: Purpose, column: str) -> None:
    """An answer keeps enough for its end; a run goes on after a break with what its attempts have cost."""
    before = Plan.objects.values_list(column, flat=True).get(tier="free")
    Plan.objects.filter(tier="free").update(**{column: 3 * CALL})
    plans.forget()
    person = somebody()
    try:
        meter = meter_of(person, purpose, keeps_answer=purpose == Purpose.CHAT)
        asyncio.run(request(meter))
        if purpose == Purpose.AGENTS:
            settle(meter)
            meter = meter_of(person, purpose, spent_before=CALL)
        for _ in range(2):
            asyncio.run(request(meter))
        with pytest.raises(WorkBudgetSpent):
            asyncio.run(meter.admit("a-model", CALL))
        if purpose == Purpose.CHAT:
            meter.is_last = True
            asyncio.run(request(meter))
        settle(meter)
        spent = 3 * CALL if purpose == Purpose.AGENTS else 4 * CALL  # with the last answer
        assert (own_month(person).spent, own_month(person).reserved) == (spent, 0)
        asyncio.run(request(meter_of(person, purpose)))  # another piece of work
    finally:
        Plan.objects.filter(tier="free").update(**{column: before})
        plans.forget()


def test_whoever_is_refused_learns_when_there_is_money_again() -> None:
    with pytest.raises(BudgetSpent) as refused:
        asyncio.run(meter_of(somebody()).admit("a-model", 11 * CALL))
    month = month_of(timezone.now(), ZoneInfo("UTC"))
    assert refused.value.retry_at == month.ends_at
    assert refused.value.extra == {"retry_at": month.ends_at.isoformat()}


def test_the_installation_has_a_month_of_its_own(settings: Settings) -> None:
    settings.PLANS, settings.INSTALLATION_BUDGET = False, 2 * CALL / 10**6
    Allowance.objects.filter(scope="installation").delete()
    first, second = somebody(), somebody()
    asyncio.run(request(meter_of(first)))
    asyncio.run(request(meter_of(second)))
    with pytest.raises(BudgetSpent):
        asyncio.run(meter_of(first).admit("a-model", CALL))
    Allowance.objects.filter(scope="installation").delete()


def test_a_model_without_a_price_is_not_asked() -> None:
    with pytest.raises(PriceMissing):
        asyncio.run(meter_of(somebody()).admit("a-model", None))


def test_a_process_that_dies_has_spent_what_it_held() -> None:
    person = somebody()
    meter = meter_of(person, keeps_answer=True)
    asyncio.run(request(meter, 30))
    budget_sweep.settle_lost()
    assert own_month(person).reserved == 2 * CALL  # not before its time
    Hold.objects.filter(pk=meter.hold).update(expires_at=Now() - dt.timedelta(seconds=1))
    budget_sweep.settle_lost()
    assert (own_month(person).spent, own_month(person).reserved) == (2 * CALL, 0)
    use = Use.objects.of(person.id).get()
    assert (use.cost_micro, use.estimated_micro) == (2 * CALL, 2 * CALL)
    # If it was not dead after all, it pays nothing twice, and nothing is counted twice.
    settle(meter)
    assert (own_month(person).spent, own_month(person).reserved) == (2 * CALL, 0)
    assert Use.objects.of(person.id).get().cost_micro == 2 * CALL


def test_what_is_held_across_midnight_is_settled_in_the_month_it_was_taken_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the user's own zone, and on the 31st."""
    person = somebody()
    User.objects.filter(pk=person.id).update(timezone="Europe/Rome")

    def at(hour: int, minute: int) -> BudgetedMeter:
        now = dt.datetime(2026, 10, 31, hour, minute, tzinfo=dt.UTC)
        monkeypatch.setattr(allowances, "timezone", SimpleNamespace(now=lambda: now))
        return meter_of(person, keeps_answer=True)

    before = at(22, 59)
    asyncio.run(request(before, 30))
    after = at(23, 1)
    asyncio.run(request(after, 40))
    for meter in (after, before):
        settle(meter)
    months = Allowance.objects.filter(user=person.id).order_by("month")
    assert list(months.values_list("month", "spent", "reserved")) == [
        (dt.date(2026, 10, 1), 30, 0),
        (dt.date(2026, 11, 1), 40, 0),
    ]


def test_another_time_zone_brings_no_second_allowance_for_a_month(monkeypatch: pytest.MonkeyPatch) -> None:
    now = dt.datetime(2026, 11, 15, 12, tzinfo=dt.UTC)
    monkeypatch.setattr(allowances, "timezone", SimpleNamespace(now=lambda: now))
    person = somebody()
    meter = meter_of(person)
    asyncio.run(request(meter, 10 * CALL, most=10 * CALL))
    settle(meter)
    for zone, renews_at in [
        ("Pacific/Kiritimati", "2026-11-30T10:00+00:00"),
        ("Pacific/Pago_Pago", "2026-12-01T11:00+00:00"),
    ]:
        User.objects.filter(pk=person.id).update(timezone=zone)
        with pytest.raises(BudgetSpent) as refused:
            asyncio.run(meter_of(person).admit("a-model", CALL))
        assert refused.value.retry_at == dt.datetime.fromisoformat(renews_at)
    assert own_month(person).spent == 10 * CALL


def test_a_hold_of_a_deleted_account_goes(settings: Settings) -> None:
    person = somebody()
    meter = meter_of(person)
    asyncio.run(request(meter))
    Allowance.objects.filter(user=person.id).delete()
    Hold.objects.filter(pk=meter.hold).update(
        expires_at=Now() - dt.timedelta(seconds=1), user_ref=uuid.uuid4()
    )
    budget_sweep.settle_lost()
    assert not Hold.objects.filter(pk=meter.hold).exists()


def test_a_month_that_is_low_is_told_once() -> None:
    person = somebody()
    first = meter_of(person)
    asyncio.run(request(first, 8 * CALL, most=8 * CALL))
    settle(first)
    again = [meter_of(person) for _ in range(2)]
    for meter in again:
        asyncio.run(request(meter, 1, most=10))
        settle(meter)
    assert [meter.is_low for meter in (first, *again)] == [False, True, False]
    assert again[1].percent_left == 19


def test_reserving_is_one_statement_once_the_months_row_is_known(django_assert_num_queries: Any) -> None:
    person = somebody()
    meter = meter_of(person)
    meter._find_limits()
    with django_assert_num_queries(1):
        assert meter._reserve("a-model", CALL)
    with django_assert_num_queries(1):
        usage.settle(meter, (), is_over=True)


@pytest.mark.parametrize("is_lost", [True, False])
def test_an_answer_in_a_conversation_pays_from_what_its_turn_holds_once(is_lost: bool) -> None:
    person = somebody()
    asked = make_request(person.id)
    claimed = claim(asked)
    meter = meter_of(person)
    asyncio.run(request(meter, 40))
    if is_lost:
        assert lose_turn(turn=Turn.objects.get(pk=claimed.turn_id), code="turn_lost").ended
    finish_turn(asked, claimed, meter=meter, uses=meter.uses())
    assert (own_month(person).spent, own_month(person).reserved) == (40, 0)
    assert not Hold.objects.filter(pk=meter.hold).exists()
    assert [use.cost_micro for use in Use.objects.of(person.id)] == [40]
    assert Conversation.objects.get(pk=claimed.conversation_id).message_count == 2


def test_a_turn_of_two_requests_reserves_in_its_claim_and_settles_in_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once this process knows what a turn costs, money costs it no statement of its own."""

    def turn(person: Person, requests: int) -> tuple[list[int], int]:
        """How many statements its claim, its requests and its end take, and what is held before the end."""
        asked = make_request(person.id, starts_conversation=False, memory=False)
        with CaptureQueriesContext(connection) as claiming:
            claimed = claim(asked)
        meter = meter_of(person, keeps_answer=True)
        if claimed.held is not None:
            meter.start_with(claimed.held)
        before = len(round_trips)
        for _ in range(requests):
            asyncio.run(request(meter, 40))
        held = own_month(person).reserved
        with CaptureQueriesContext(connection) as ending:
            finish_turn(asked, claimed, meter=meter, uses=meter.uses())
        return [len(claiming), len(round_trips) - before, len(ending)], held

    round_trips, run = [], budgets.db.run

    async def counted(work: Any, *given: Any) -> Any:
        round_trips.append(work)
        return await run(work, *given)

    monkeypatch.setattr(budgets.db, "run", counted)
    monkeypatch.setattr(turn_holds, "_usual", ("", 0))
    person = somebody()
    (_, asking, ending), _ = turn(person, 1)
    assert asking > 0 and turn_holds._usual == ("a-model", CALL)
    assert turn(person, 2) == ([1, 0, ending], 3 * CALL)
    assert (own_month(person).spent, own_month(person).reserved) == (120, 0)
    assert not Hold.objects.filter(user_ref=person.id).exists()
    # Too little for all of it: the first request reserves what it needs.
    Allowance.objects.filter(user=person.id).update(spent=8 * CALL)
    counts, held = turn(person, 1)
    assert counts[1] > 0 and held == 2 * CALL
    # Who waits for another turn holds nothing meanwhile, and neither does who has sent the same request before.
    place = str(make_conversation(person.id).pk)
    running = claim(make_request(person.id, conversation_id=place))
    waiting = make_request(person.id, conversation_id=place)
    assert running.held is None and claim(waiting).held is None
    assert own_month(person).reserved == 0


def test_a_turn_in_another_time_zone_holds_of_the_same_month_until_its_end_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turn_holds, "_usual", ("a-model", CALL))
    person, now = somebody(), timezone.now()
    meter_of(person)._find_limits()
    zone = "Pacific/Kiritimati" if now.day < 15 else "Pacific/Pago_Pago"  # where it is the same month now
    User.objects.filter(pk=person.id).update(timezone=zone)
    held = claim(make_request(person.id)).held
    assert held is not None and held.limits.ids == (own_month(person).pk,)
    window = month_of(now, ZoneInfo(zone))
    assert (held.limits.window.first_day, held.limits.window.ends_at) == (window.first_day, window.ends_at)
    assert held.limits.window.ends_at.date().day == 1  # as it is said to the user, in their zone


def test_nobody_gets_more_than_there_is_and_all_of_it_is_granted(settings: Settings) -> None:
    """16 threads for 6 users, each with money for ten requests: ten are granted to each, whatever the order."""
    people = [somebody() for _ in range(6)]

    def ask(number: int) -> tuple[uuid.UUID, bool]:
        person = people[number % len(people)]
        meter = meter_of(person)
        try:
            asyncio.run(request(meter))
            settle(meter)
        except BudgetSpent:
            return person.id, False
        finally:
            connections.close_all()
        return person.id, True

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(15 * len(people))))
    for person in people:
        granted = sum(was for who, was in answers if who == person.id)
        assert granted == 10
        assert (own_month(person).spent, own_month(person).reserved) == (10 * CALL, 0)
        assert Use.objects.of(person.id).aggregate(spent=Sum("cost_micro"))["spent"] == 10 * CALL
