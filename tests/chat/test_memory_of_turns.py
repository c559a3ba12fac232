"""The memory of turns: over a real socket, read by the offline model's rules, and gone with its source."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.conf import LazySettings
from django.db import connection
from django.test.utils import CaptureQueriesContext

from adiuva import llm
from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from adiuva.offline_llm import memory_extraction
from chat import conversations
from chat.claimed_turn import Steered
from chat.models import Conversation
from memory import entries, entry_content, exchanges, fact_extraction, recall
from memory.models import Embedding, Entry, EntrySource, Exchange, Memory, Receipt, Tier
from tests.chat.chat_client import ChatClient, ClientStream, connect, conversation_of
from tests.chat.factories import claim, finish_turn, make_conversation, make_request, make_turn
from tests.factories import Person
from tests.fakes.provider import Fail, Provider, Request
from tests.memory.exchange_reader import read_exchanges

THIRTY = [
    "Hello there",
    "My name is Ada.",
    "My favourite drink is coffee.",
    "List my tasks",
    "I live in Turin",
    "Remember that Bob likes sailing",
    "What is due today?",
    "I bill 80 euros an hour",
    "My favourite drink is coffee!",
    "Thanks",
    "Which notes do I have?",
    "I moved to Milan",
    "My favourite drink is now tea.",
    "Remember that Bob likes sailing!",
    "I always answer mails before nine",
    "What should I do next?",
    "I charge 95 euros an hour",
    "Show me the project of Carla",
    "Call me Ada",
    "From now on, write to me in Italian",
    "Is anything overdue?",
    "My favourite drink is water.",
    "I live in Rome",
    "I always answer mails before nine.",
    "Good",
    "Remember: Bob likes sailing",
    "I bill 110 euros an hour",
    "Write a note about the harbour",
    "Thank you very much",
    "Bye",
]


@pytest.fixture(autouse=True)
def model(committed_db: str, provider: Provider, settings: LazySettings) -> Iterator[Provider]:
    settings.MODEL = provider.settings()
    provider.default = "All right."
    provider.memory = by_rules
    yield provider


def by_rules(request: Request) -> dict[str, Any]:
    return memory_extraction.memory_operations(request.body["messages"])


async def talk(client: ChatClient, person: Person, messages: list[str]) -> ClientStream:
    """All in one conversation; what was said is read now and then."""
    fields: dict[str, Any] = {}
    for place, message in enumerate(messages):
        stream = await client.say(message, **fields)
        assert stream.end is not None and stream.end["finish"] == "stop"
        fields["conversation_id"] = conversation_of(stream)
        if place % 4 == 0:
            await read_exchanges(person.id)
    await read_exchanges(person.id)
    return stream


def run(work: Any) -> Any:
    async def whole() -> Any:
        try:
            return await work
        finally:
            await llm.aclose()

    return asyncio.run(whole())


def heard(row: Exchange) -> exchanges.UnsealedExchange:
    return exchanges.unseal_exchange(row, cipher_for(row.user_id))


def says(entry: Entry) -> str:
    return entry_content.unseal_entry(entry, cipher_for(entry.user_id)).content


def traces(person: Person) -> dict[str, int]:
    """Rows of the memory, whichever table."""
    mine = {"user_id": person.id}
    return {
        "entries": Entry.objects.filter(**mine).count(),
        "embeddings": Embedding.objects.filter(**mine).count(),
        "exchanges": Exchange.objects.filter(**mine).count(),
        "sources": EntrySource.objects.filter(entry__user_id=person.id).count(),
        "receipts": Receipt.objects.filter(**mine).count(),
    }


NOTHING = dict.fromkeys(("entries", "embeddings", "exchanges", "sources", "receipts"), 0)


def test_what_changes_in_thirty_turns_is_known_as_it_is_and_as_it_was(chat_web: str, person: Person) -> None:
    async def conversation() -> str:
        async with connect(chat_web, person) as client:
            return conversation_of(await talk(client, person, THIRTY))

    place = run(conversation())
    holding = Entry.objects.of(person.id).current()
    core = {
        entry_content.unseal_entry(entry, cipher_for(person.id)).key: entry
        for entry in holding.filter(tier=Tier.CORE)
    }
    assert {key: says(entry) for key, entry in core.items()} == {
        "name": "Ada",
        "favourite drink": "water",
        "home": "Rome",
        "rate": "110 euros an hour",
    }
    assert sorted(says(entry) for entry in holding.filter(tier=Tier.ASSOCIATIVE)) == [
        "Bob likes sailing",
        "From now on, write to me in Italian",
        "I always answer mails before nine",
    ]
    said_at = dict(Exchange.objects.filter(user_id=person.id).values_list("seq", "said_at"))
    for key, before, turns in (
        ("favourite drink", ["tea", "coffee"], [2, 12, 21]),
        ("home", ["Milan", "Turin"], [4, 11, 22]),
        ("rate", ["95 euros an hour", "80 euros an hour"], [7, 16, 26]),
    ):
        past = list(entries.history_of(core[key]))
        assert [says(entry) for entry in past] == before
        first, second, third = (said_at[2 * turn + 1] for turn in turns)
        assert [(entry.valid_from, entry.valid_to) for entry in past] == [(second, third), (first, second)]
        assert core[key].valid_from == third
        heard = [{source.seq for source in entry.sources.all()} for entry in past]
        assert all(2 * turn + 1 in seqs for turn, seqs in zip(reversed(turns[:2]), heard, strict=True))
    sailing = next(entry for entry in holding.filter(tier=Tier.ASSOCIATIVE) if "sailing" in says(entry))
    assert [source.seq for source in sailing.sources.all()] == [11, 27, 51]
    assert Embedding.objects.filter(user_id=person.id).count() == holding.count()

    found = recall.recall(
        user_id=person.id,
        question="Where do I live, and what does Bob like?",
        vector=None,
        provider="",
        limit_tokens=1_000,
        now=datetime.now(UTC),
    )
    recalled = [one.content for one in found.entries]
    assert {"Rome", "Bob likes sailing"} <= set(recalled)
    assert not {"Turin", "Milan", "coffee", "tea"} & set(recalled)

    with person.rest(chat_web) as rest:
        assert rest.delete(f"/chat/conversations/{place}").status_code == 200
    assert traces(person) | {"receipts": 0} == NOTHING


def test_a_private_message_leaves_nothing(chat_web: str, person: Person, provider: Provider) -> None:
    async def conversation() -> None:
        async with connect(chat_web, person) as client:
            open_ = await client.say("Hello")
            place = conversation_of(open_)
            await read_exchanges(person.id)
            await asyncio.to_thread(Exchange.objects.filter(user_id=person.id).delete)
            await client.say("My name is Ada of the harbour.", conversation_id=place, memory=False)
            await client.say("I live in Turin", memory=False, scope={"type": "workspace"})
            provider.script("You are Ada of the harbour.")
            await client.say("Who am I?", conversation_id=place)
            (row,) = await db.run(list, Exchange.objects.filter(user_id=person.id))
            assert (await db.run(heard, row)).answer == ""
            await read_exchanges(person.id)
            await asyncio.to_thread(Exchange.objects.filter(user_id=person.id).delete)
        async with connect(chat_web, person, protocol=1, device_id="old") as client:
            await client.say("I bill 80 euros", memory=False)

    run(conversation())
    assert traces(person) == NOTHING
    assert all(
        "Ada of the harbour" not in str(call.body) for call in provider.memories
    )  # others' may come late


def test_a_conversation_that_began_private_stays_so(chat_web: str, person: Person) -> None:
    async def conversation() -> str:
        async with connect(chat_web, person) as client:
            stream = await client.say("My name is Ada.", memory=False)
            await client.say("I live in Turin", conversation_id=conversation_of(stream))
            return conversation_of(stream)

    place = run(conversation())
    assert traces(person) == NOTHING
    with person.rest(chat_web) as rest:
        (row,) = rest.get("/chat/conversations").json()
        assert (row["id"], row["memory"]) == (place, False)
        assert rest.patch(f"/chat/conversations/{place}", json={"memory": True}).json()["memory"] is True
        assert rest.patch(f"/chat/conversations/{place}", json={}).status_code == 400
        assert rest.patch(f"/chat/conversations/{place}", json={"memory": "perhaps"}).status_code == 400

    async def more() -> None:
        async with connect(chat_web, person) as client:
            await client.say("I live in Milan", conversation_id=place)
            await read_exchanges(person.id)

    run(more())
    assert [says(entry) for entry in Entry.objects.of(person.id)] == ["Milan"]


def test_switching_memory_off_discards_exchanges_that_were_not_processed(
    chat_web: str, person: Person
) -> None:
    Memory.objects.create(pk=person.id)
    place = make_conversation(person.id, ("My name is Ada.", "Hello Ada."))
    with person.rest(chat_web) as rest:
        rest.patch(f"/chat/conversations/{place.pk}", json={"memory": False})
    assert not Conversation.objects.get(pk=place.pk).memory
    assert traces(person)["exchanges"] == 0


def test_a_memory_that_is_off_keeps_nothing(chat_web: str, person: Person) -> None:
    Memory.objects.create(pk=person.id, enabled=False)

    async def conversation() -> None:
        async with connect(chat_web, person) as client:
            await client.say("My name is Ada.")
        async with connect(chat_web, person, protocol=1, device_id="old") as client:
            await client.say("I live in Turin")

    run(conversation())
    assert traces(person) == NOTHING


def test_requests_whose_chat_the_device_keeps_are_remembered_too(chat_web: str, person: Person) -> None:
    async def conversation() -> None:
        async with connect(chat_web, person, protocol=1, device_id="old") as client:
            await client.say("My name is Ada.")
            await client.say("I live in Turin", conversation_history=[{"role": "user", "content": "Hello"}])
            with person.rest(chat_web) as rest:
                body = {"message": "I bill 80 euros"}
                answer = await asyncio.to_thread(rest.post, "/chat", json=body)
                assert answer.status_code == 200
                private = {"message": "I bill 90 euros", "memory": False}
                assert (await asyncio.to_thread(rest.post, "/chat", json=private)).status_code == 200
            await read_exchanges(person.id)

    run(conversation())
    assert sorted(says(entry) for entry in Entry.objects.of(person.id)) == ["80 euros", "Ada", "Turin"]
    assert set(EntrySource.objects.filter(entry__user_id=person.id).values_list("kind", "seq")) == {
        ("request", None)
    }


def test_a_turn_without_an_answer_is_not_remembered(
    chat_web: str, person: Person, provider: Provider
) -> None:
    provider.script(Fail(401))

    async def conversation() -> None:
        async with connect(chat_web, person) as client:
            await client.say("My name is Ada.")

    run(conversation())
    assert traces(person) == NOTHING


def test_storing_an_exchange_costs_a_turn_one_statement(person: Person) -> None:
    first = make_turn(person.id)
    counts = []
    for fields in (
        {},
        {"memory": False},
        {"starts_conversation": False},
        {"starts_conversation": False, "memory": False},
    ):
        place = None if "starts_conversation" in fields else str(first.conversation_id)
        request = make_request(person.id, "My name is Ada.", conversation_id=place, **fields)
        turn = claim(request)
        with CaptureQueriesContext(connection) as queries:
            finish_turn(request, turn, steered=[Steered("And I live in Turin.")])
        counts.append(len(queries))
    assert counts[0] - counts[1] == counts[2] - counts[3] == 1
    assert counts[2] == 2
    rows = Exchange.objects.filter(user_id=person.id).order_by("said_at")
    said = [heard(row) for row in rows]
    assert [(one.kind, one.seq, one.said) for one in said[1:]] == [
        ("conversation", 3, "My name is Ada.\n\nAnd I live in Turin."),
        ("request", None, "My name is Ada.\n\nAnd I live in Turin."),
    ]


def test_deleting_and_recording_at_once_leave_nothing_and_wait_for_nobody(person: Person) -> None:
    """Locks are taken in one order: conversations are deleted while they are read and written."""
    places = [
        make_conversation(person.id, ("My name is Ada.", "Hello."), ("I live in Turin", "Fine."))
        for _ in range(8)
    ]

    async def work() -> None:
        more = [db.run(make_turn, person.id, "I bill 80 euros", conversation_id=None) for _ in range(4)]
        gone = [db.run(conversations.delete, conversation=place) for place in places]
        await asyncio.gather(fact_extraction.extract_facts(person.id), *more, *gone)
        await read_exchanges(person.id)

    run(work())
    left = {str(pk) for pk in Conversation.objects.of(person.id).values_list("pk", flat=True)}
    assert len(left) == 4
    assert {str(source.source_id) for source in EntrySource.objects.filter(entry__user_id=person.id)} <= left
    assert {str(row.source_id) for row in Exchange.objects.filter(user_id=person.id)} <= left
