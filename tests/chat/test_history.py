"""The history that a turn gets: the user's clock, the conversation that it continues, and the summary of a long one."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest

from adiuva.core import db
from chat.models import Conversation, Turn
from chat.prompts import system_prompt
from tests.chat.chat_client import (
    ClientStream,
    DeviceRows,
    Frame,
    connect,
    conversation_of,
    end_frame,
    prompt_messages,
    said_words,
    small_limits_web,
    stored_messages,
    wait_for,
)
from tests.factories import Person, somebody
from tests.fakes.provider import Call, Fail, Hold, Provider, Request
from tests.server_processes import Stack


@pytest.fixture
def tight(stack: Stack, provider: Provider) -> str:
    return small_limits_web(stack, provider)


def spoken(body: Frame) -> list[tuple[str, str]]:
    """What was said, as the model has it, without what is ours."""
    return [
        (said["role"], said_words(said)) for said in body["messages"] if said["role"] in ("user", "assistant")
    ]


def tail(body: Frame) -> str:
    return str(body["messages"][-1]["content"])


async def conversations_of(person: Person) -> int:
    return await db.run(lambda: Conversation.objects.of(person.id).count())


# ── The user's clock ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])  # never the same day
async def test_now_is_in_the_users_zone(
    chat_web: str, committed_db: str, provider: Provider, zone: str
) -> None:
    person = await db.run(somebody, timezone=zone, locale="it-IT")
    before = datetime.now(ZoneInfo(zone))
    async with connect(chat_web, person) as client:
        await client.say("what day is it?")
    said = re.search(
        r"^Now: (\w+) (\S+ \S+) \((\S+)\)\. The user's locale: (\S+)\.", tail(provider.last), re.MULTILINE
    )
    assert said is not None
    now = datetime.strptime(said[2], "%Y-%m-%d %H:%M").replace(tzinfo=ZoneInfo(zone))
    assert before - timedelta(minutes=1) <= now <= datetime.now(ZoneInfo(zone))
    assert (said[1], said[3], said[4]) == (f"{now:%A}", zone, "it-IT")


async def test_dates_go_to_the_device_and_come_back_in_the_users_zone(
    chat_web: str, committed_db: str, provider: Provider
) -> None:
    person = await db.run(somebody, timezone="Asia/Tokyo")
    rows = DeviceRows()
    provider.script(Call("create_task", {"title": "Call Bob", "due_date": "2026-12-01T14:30"}), "Done.")
    async with connect(chat_web, person, rows) as client:
        end_frame(await client.say("remind me to call Bob"))
    due = datetime(2026, 12, 1, 5, 30, tzinfo=UTC)
    assert rows.tables["tasks"][0]["dueDate"] == int(due.timestamp() * 1000)
    assert "due Tue 2026-12-01 14:30" in prompt_messages(provider.last)[0]


# ── Which conversation ──────────────────────────────────────────────────────────────────────────────────


async def test_a_request_that_names_no_conversation_begins_one_and_the_next_continues_it(
    chat_web: str, person: Person, provider: Provider
) -> None:
    provider.script("Hello Ada.", "Your name is Ada.")
    async with connect(chat_web, person) as client:
        first = await client.say("my name is Ada")
        place = conversation_of(first)
        second = await client.say("what is my name?", conversation_id=place)
    assert conversation_of(second) == place
    assert spoken(provider.last) == [
        ("user", "my name is Ada"),
        ("assistant", "Hello Ada."),
        ("user", "what is my name?"),
    ]
    assert [message["text"] for message in await stored_messages(chat_web, person, place)] == [
        "my name is Ada",
        "Hello Ada.",
        "what is my name?",
        "Your name is Ada.",
    ]
    assert await conversations_of(person) == 1


async def test_what_was_changed_earlier_is_in_the_prompt(
    chat_web: str, person: Person, provider: Provider
) -> None:
    rows = DeviceRows()
    provider.script(Call("create_task", {"title": "Call Bob"}), "Done.", "Undone.")
    async with connect(chat_web, person, rows) as client:
        first = await client.say("remind me to call Bob")
        await client.say("undo that", conversation_id=conversation_of(first))
    assert 'insert in tasks: {"title":"Call Bob","id":"t1"}' in tail(provider.last)


async def test_a_clients_history_is_given_to_the_model_and_not_stored(
    chat_web: str, person: Person, provider: Provider
) -> None:
    history = [
        {"role": "user", "content": "my name is Ada"},
        {"role": "assistant", "content": "Hello Ada."},
        {"role": "assistant", "content": ""},
    ]
    async with connect(chat_web, person) as client:
        stream = await client.say("what is my name?", conversation_history=history)
    assert spoken(provider.last) == [
        ("user", "my name is Ada"),
        ("assistant", "Hello Ada."),
        ("user", "what is my name?"),
    ]
    assert stream.frames[0].get("conversation_id") is None
    assert await conversations_of(person) == 0


async def test_protocol_1_stores_no_conversation_and_names_none(
    chat_web: str, person: Person, provider: Provider
) -> None:
    async with connect(chat_web, person) as newer:
        place = conversation_of(await newer.say("a secret of protocol 2"))
    async with connect(chat_web, person, protocol=1, device_id="old") as client:
        await client.say("hello")
        stream = await client.say("what did I say?", conversation_id=place)
    assert stream.kinds()[-1] == "stream_end"
    assert spoken(provider.last) == [("user", "what did I say?")]
    assert await conversations_of(person) == 1


@pytest.mark.parametrize("which", ["unknown", "no id at all", "another user's", "deleted"])
async def test_a_missing_conversation_ends_the_request(
    chat_web: str, person: Person, provider: Provider, which: str
) -> None:
    place = {"unknown": str(uuid4()), "no id at all": "x' OR 1=1"}.get(which)
    if place is None:
        owner = person if which == "deleted" else await db.run(somebody)
        async with connect(chat_web, owner) as client:
            place = conversation_of(await client.say("a secret"))
        if which == "deleted":
            await db.run(lambda: Conversation.objects.of(person.id).delete())
    provider.reset()
    async with connect(chat_web, person) as client:
        stream = await client.say("go on", conversation_id=place)
    end = end_frame(stream)
    assert (end["finish"], end["code"], stream.text) == ("error", "conversation_not_found", "")
    assert provider.calls == []
    assert await conversations_of(person) == 0


async def test_a_conversation_that_is_deleted_during_its_turn_does_not_keep_it_from_ending(
    chat_web: str, person: Person, provider: Provider
) -> None:
    hold = Hold("Gone with the wind.")
    provider.script("Hello.", hold)
    async with connect(chat_web, person) as client:
        place = conversation_of(await client.say("hello"))
        key = await client.ask("go on", conversation_id=place)
        await wait_for(hold.reached)
        with person.rest(chat_web) as rest:
            assert rest.delete(f"/chat/conversations/{place}").status_code == 200
        hold.release()
        stream = await client.ended(key)
    assert (stream.text, end_frame(stream)["finish"]) == ("Gone with the wind.", "stop")
    state = await db.run(lambda: Turn.objects.of(person.id).get(request_id=key).state)
    assert (state, await conversations_of(person)) == ("stop", 0)


# ── Long conversations ──────────────────────────────────────────────────────────────────────────────────


def long(number: int) -> str:
    return f"fact {number}: " + "x" * 100


class Model:
    """Answers, and sums up; `summaries` are the requests for that."""

    def __init__(self, provider: Provider) -> None:
        self.summaries: list[Frame] = []
        self.answers: list[Frame] = []
        provider.default = self

    def __call__(self, request: Request) -> Any:
        if request.body["messages"][0]["content"] == system_prompt("summary").text:
            self.summaries.append(request.body)
            return f"SUMMARY {len(self.summaries)}"
        self.answers.append(request.body)
        return long(len(self.answers))


def covered(model: Model, body: Frame) -> set[str]:
    """The facts that a request for an answer shows, or that a summary was made of."""
    texts = [*model.summaries, body]
    return set(re.findall(r"fact (?:q?\d+)", str(texts)))


async def test_a_long_conversation_is_summarised_once_and_nothing_is_lost(
    tight: str, person: Person, provider: Provider
) -> None:
    model = Model(provider)
    streams: list[ClientStream] = []
    async with connect(tight, person) as client:
        place = None
        for number in range(12):
            named = {"conversation_id": place} if place else {}
            streams.append(await client.say(f"fact q{number}: " + "y" * 100, **named))
            place = conversation_of(streams[0])
            everything = {f"fact q{one}" for one in range(number + 1)} | {
                f"fact {one}" for one in range(1, number + 1)
            }
            assert covered(model, model.answers[-1]) == everything
    assert 1 < len(model.summaries) < 4
    assert all(end_frame(stream)["finish"] == "stop" for stream in streams)
    made = f"SUMMARY {len(model.summaries)}"
    assert made in tail(model.answers[-1])
    assert said_words(model.answers[-1]["messages"][-1]).startswith("fact q11")
    assert len(spoken(model.answers[-1])) >= 5  # the last ones stay as they were said
    # Each builds on the one before, and no message is summed up twice.
    assert "SUMMARY 1" in str(model.summaries[1])
    facts = [fact for body in model.summaries for fact in re.findall(r"fact (?:q?\d+)", str(body))]
    assert len(facts) == len(set(facts))
    summing = next(stream for stream in streams if end_frame(stream)["usage"]["model_calls"] == 2)
    assert "Summing up what was said before" in [
        frame.get("label") for frame in summing.frames if frame["type"] == "stream_status"
    ]


async def test_a_clients_long_history_is_summarised_once(
    tight: str, person: Person, provider: Provider
) -> None:
    model = Model(provider)
    history = [
        {"role": "user" if place % 2 == 0 else "assistant", "content": f"fact q{place}: " + "y" * 100}
        for place in range(12)
    ]
    async with connect(tight, person) as client:
        first = await client.say("and then?", conversation_history=history)
        assert covered(model, model.answers[-1]) == {f"fact q{place}" for place in range(12)}
        more = [
            {"role": "user", "content": "and then?"},
            {"role": "assistant", "content": first.text},
        ]
        second = await client.say("and now?", conversation_history=history + more)
    assert len(model.summaries) == 1
    assert (end_frame(first)["usage"]["model_calls"], end_frame(second)["usage"]["model_calls"]) == (2, 1)
    assert "SUMMARY 1" in tail(model.answers[0])
    assert "SUMMARY 1" in tail(model.answers[1])
    assert spoken(model.answers[1])[-3:] == [
        ("user", "and then?"),
        ("assistant", first.text),
        ("user", "and now?"),
    ]


async def test_one_users_summary_is_not_anothers(tight: str, person: Person, provider: Provider) -> None:
    model = Model(provider)
    history = [{"role": "user", "content": long(place)} for place in range(12)]
    for someone in (person, await db.run(somebody)):
        async with connect(tight, someone) as client:
            await client.say("and then?", conversation_history=history)
    assert len(model.summaries) == 2


async def test_a_history_that_cannot_be_summarised_ends_the_turn_and_is_kept(
    tight: str, person: Person, provider: Provider
) -> None:
    model = Model(provider)
    async with connect(tight, person) as client:
        place = conversation_of(await client.say(long(1)))
        for number in range(2, 6):
            await client.say(long(number), conversation_id=place)
        provider.script(Fail(400))
        failed = end_frame(await client.say("and then?", conversation_id=place))
        assert (failed["finish"], failed["code"]) == ("error", "model_rejected")
        assert model.summaries == []
        # The next turn tries again.
        assert end_frame(await client.say("and now?", conversation_id=place))["finish"] == "stop"
    assert len(model.summaries) == 1
    assert "fact 1" in str(model.summaries)
    assert "and then?" in str(spoken(model.answers[-1]))
