"""The mark of a turn that has read text that the user did not write, and what of it reaches the memory."""

from __future__ import annotations

from typing import Any

import pytest

from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from chat.foreign_text import is_foreign
from chat.models import Conversation, Turn
from memory.exchanges import UnsealedExchange, unseal_exchange
from memory.models import Exchange
from tests.chat.chat_client import ChatClient, ClientStream, DeviceRows, connect, conversation_of
from tests.factories import Person
from tests.fakes.provider import Call, Provider

NOTE = {"id": "n1", "title": "Bank", "content": "Pay to DE99, says the bank.", "projectId": None}
MINE = {"id": "t1", "title": "Call Ada", "description": None, "status": "todo", "isAiSuggested": 0}
FOUND = {"id": "t2", "title": "Pay to DE99", "description": None, "status": "todo", "isAiSuggested": 1}


@pytest.mark.parametrize(
    ("table", "row", "foreign"),
    [
        ("notes", {"title": "Mine"}, True),
        ("taskComments", {"content": "ok"}, True),
        ("tasks", MINE, False),
        ("tasks", MINE | {"description": " "}, False),
        ("tasks", MINE | {"description": "Dear all, …"}, True),
        ("tasks", FOUND | {"isApproved": 1}, True),
        ("timelines", {"title": "Launch", "isAiSuggested": 1}, True),
        ("projects", {"name": "Website", "aiSummary": ""}, False),
        ("projects", {"name": "Website", "aiSummary": "For Rossi"}, True),
        ("clients", {"name": "Rossi", "industry": "wine"}, False),
    ],
)
def test_a_text_is_foreign_where_others_may_have_written_it(
    table: str, row: dict[str, Any], foreign: bool
) -> None:
    assert is_foreign(table, row) is foreign


async def stored(person: Person) -> tuple[list[Any], list[UnsealedExchange]]:
    """What turns have read, and what the memory is to read, both oldest first."""

    def read() -> tuple[list[Any], list[UnsealedExchange]]:
        cipher = cipher_for(person.id)
        turns = Turn.objects.of(person.id).order_by("started_at")
        marks = [Turn.foreign.unseal_from(cipher, turn) if turn.foreign else None for turn in turns]
        exchanges = Exchange.objects.filter(user_id=person.id).order_by("said_at")
        return marks, [unseal_exchange(row, cipher) for row in exchanges]

    return await db.run(read)


async def say(client: ChatClient, message: str, **fields: Any) -> ClientStream:
    stream = await client.say(message, **fields)
    assert stream.end is not None and stream.end["finish"] == "stop"
    return stream


async def test_what_a_turn_read_is_kept_and_its_answer_and_later_ones_are_not(
    chat_web: str, person: Person, provider: Provider
) -> None:
    rows = DeviceRows(notes=[NOTE], tasks=[MINE], projects=[{"id": "p1", "name": "Web", "aiSummary": "x"}])
    provider.script(Call("list_tasks"), "Call Ada.")
    provider.script(
        Call("get_note", {"note_id": "n1"}), Call("create_task", {"title": "Pay"}), "Pay to DE99."
    )
    provider.script("As I said, DE99.")
    async with connect(chat_web, person, rows) as client:
        place = conversation_of(await say(client, "What is open?"))
        await say(client, "Read the bank note, and create a task: pay", conversation_id=place)
        await say(client, "Where to?", conversation_id=place)
    marks, exchanges = await stored(person)
    read = [{"table": "notes", "id": "n1"}]
    assert marks == [None, read, None]
    assert [list(one.foreign) for one in exchanges] == [[], read, []]
    assert exchanges[0].answer == "Call Ada."
    assert exchanges[1].answer.endswith(
        "(left out, since it may quote texts that the user did not write. Done: insert in tasks: 1)"
    )
    assert exchanges[2].answer == "(left out, since it may quote texts that the user did not write)"
    assert (await Conversation.objects.aget(pk=place)).has_foreign


async def test_found_records_the_row_in_view_and_what_the_client_sends_along_mark_a_turn(
    chat_web: str, person: Person, provider: Provider
) -> None:
    rows = DeviceRows(notes=[NOTE], tasks=[MINE, FOUND])
    provider.script(Call("list_tasks"), "Two.", "A note.", "Hello again.")
    async with connect(chat_web, person, rows) as client:
        await say(client, "What is open?")
        await say(client, "What is this?", scope={"type": "note", "id": "n1"})
        history = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "DE99, hello"}]
        await say(client, "Again", conversation_history=history)
    marks, exchanges = await stored(person)
    assert marks == [[{"table": "tasks", "id": "t2"}], [{"table": "notes", "id": "n1"}], None]
    assert not any("DE99" in one.answer or one.answer.startswith("Hello") for one in exchanges)
