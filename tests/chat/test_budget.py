"""A turn and its user's money: an answer at the end of it, a sentence before that, and no request after."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

from django.utils import timezone

from adiuva.core import db
from billing.models import Allowance, Hold, Plan
from billing.months import month_of
from tests.chat.chat_client import connect, end_frame, small_limits_web
from tests.factories import Person, somebody
from tests.fakes.provider import Call, Provider, Say
from tests.server_processes import Stack

SPENT = "This month's allowance for the assistant is used up. It is renewed on"
# As the server's price has it, two micro-units a token of output: what is asked for at most costs this at least.
ANSWER = 2 * 4_096


def somebody_with(left: int) -> Person:
    """A user who has so much left of this month, in micro-units."""
    person = somebody()
    budget = Plan.objects.get(tier="free").budget_micro
    assert budget is not None
    month = month_of(timezone.now(), ZoneInfo("UTC"))
    Allowance.objects.create(scope="user", user_id=person.id, month=month.first_day, spent=budget - left)
    return person


def month_of_person(person: Person) -> Allowance:
    return Allowance.objects.get(user=person.id, scope="user")


async def test_who_has_no_money_is_told_so_and_no_model_is_asked(stack: Stack, provider: Provider) -> None:
    person = await db.run(somebody_with, 100)
    async with connect(small_limits_web(stack, provider), person) as client:
        stream = await client.say("hello")
    end = end_frame(stream)
    assert (end["finish"], end["code"], end["usage"]["model_calls"]) == ("limit", "budget_spent", 0)
    assert " ".join(stream.text.split()).startswith(SPENT) and not provider.chats
    assert end["retry_at"] == int(next_month().timestamp() * 1000)
    assert (await db.run(month_of_person, person)).reserved == 0


async def test_money_that_ends_in_the_middle_leaves_an_answer(stack: Stack, provider: Provider) -> None:
    """Its first request costs more than was thought: what is kept pays an answer, and nothing is left for another."""
    person = await db.run(somebody_with, 3 * ANSWER)
    provider.script(Say(calls=[Call("list_tasks")], usage=(900, 9_500)), "This is what I have.")
    async with connect(small_limits_web(stack, provider), person) as client:
        stream = await client.say("list my tasks")
        again = await client.say("and now?")
    end = end_frame(stream)
    assert (end["finish"], end["code"], end["usage"]["model_calls"]) == ("limit", "budget_spent", 2)
    assert "This is what I have." in stream.text and SPENT in " ".join(stream.text.split())
    assert "tools" not in provider.chats[1].body
    assert end_frame(again)["code"] == "budget_spent" and len(provider.chats) == 2
    month = await db.run(month_of_person, person)
    assert month.reserved == 0 and not await db.run(Hold.objects.filter(user_ref=person.id).exists)


async def test_that_little_is_left_is_said_once(stack: Stack, provider: Provider) -> None:
    person = await db.run(somebody_with, 60_000)  # of 300,000
    provider.default = Say("Hello.", usage=(10, 10))
    async with connect(small_limits_web(stack, provider), person) as client:
        first, second = await client.say("hello"), await client.say("hello again")
    said = f"Of this month's allowance 19 % are left. It is renewed on {next_month():%B} 1."
    assert said in first.text and end_frame(first)["notices"] == ["budget_low"]
    assert end_frame(first)["usage"]["percent_left"] == 19 and end_frame(first)["usage"]["cost_micro"] == 30
    assert second.text == "Hello." and "notices" not in end_frame(second)


def next_month() -> dt.datetime:
    return month_of(timezone.now(), ZoneInfo("UTC")).ends_at
