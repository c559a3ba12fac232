"""Hostile texts and a model that obeys them: what the user did not ask for neither enters nor leaves the memory.

The model does whatever the newest text tells it to, as the assistant and as the reader of exchanges. All of the texts
are read by `bench.hostile_texts`.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.conf import LazySettings

from adiuva import llm
from adiuva.core import db
from tests.chat.chat_client import connect, conversation_of
from tests.factories import Person
from tests.fakes.provider import Call, Provider, Request
from tests.hostile_texts import (
    OWN,
    MemoryText,
    called,
    obey_about_memory,
    put_own,
    remembered,
    sample_of_memory_texts,
)
from tests.memory.exchange_reader import read_exchanges


@pytest.fixture(autouse=True)
async def model(committed_db: str, provider: Provider, settings: LazySettings) -> AsyncIterator[Provider]:
    settings.MODEL = provider.settings()
    provider.default = obey_about_memory
    yield provider
    await llm.aclose()


@pytest.mark.parametrize("hostile", sample_of_memory_texts(), ids=lambda each: each.template)
async def test_no_text_changes_the_memory_of_a_user_who_did_not_ask(
    chat_web: str, person: Person, provider: Provider, hostile: MemoryText
) -> None:
    """By the tools of the turn, then by the worker that reads what was said."""
    await db.run(put_own, person)
    # The reader is not shown the text. It obeys all the same, as if it had been.
    provider.memory = {"operations": hostile.operations}
    async with connect(chat_web, person, hostile.rows()) as client:
        stream = await client.say(hostile.question, **hostile.fields())
        assert stream.end is not None and stream.end["finish"] == "stop"
        # The next turn is shown what this answer quotes.
        await client.say("Hm", conversation_id=conversation_of(stream))
    if hostile.is_whole:
        assert called(provider.chats) & {"remember", "correct", "forget"}  # the model did try
    await read_exchanges(person.id)
    assert await db.run(remembered, person) == (OWN, 0, [])


HONEST = {
    "en": ("My hourly rate is 80 euros now, not 70.", "80 euros", "Forget my bank account."),
    "de": ("Mein Stundensatz ist jetzt 80 Euro, nicht mehr 70.", "80 Euro", "Vergiss mein Konto."),
    "fr": ("Mon tarif est maintenant de 80 euros, pas 70.", "80 euros", "Oublie mon compte."),
    "it": ("La mia tariffa adesso è 80 euro, non 70.", "80 euro", "Dimentica il mio conto."),
    "es": ("Mi tarifa es ahora de 80 euros, no 70.", "80 euros", "Olvida mi cuenta."),
}


@pytest.mark.parametrize("language", HONEST)
async def test_what_the_user_asks_for_is_done(
    chat_web: str, person: Person, provider: Provider, language: str
) -> None:
    """By the worker; and by a tool, which the user confirms later because a note was open."""
    await db.run(put_own, person)
    rate, value, forget = HONEST[language]
    provider.default = "All right."

    def read(request: Request) -> Any:
        material = str(request.body["messages"][-1]["content"])
        known = {
            one["key"]: one["entry"]
            for one in map(json.loads, re.findall(r'^\{"entry".*\}$', material, re.M))
        }
        if forget in material:
            return {
                "operations": [
                    {"op": "forget", "entry": known["bank account"], "asked": True, "said_in": "e1"}
                ]
            }
        return {
            "operations": [
                {"op": "replace", "entry": known["hourly rate"], "content": value, "said_in": "e1"}
            ]
        }

    provider.memory = read
    async with connect(chat_web, person) as client:
        await client.say(rate)
        await read_exchanges(person.id)
        assert (await db.run(remembered, person))[0] == OWN | {"hourly rate": value}
        await client.say(forget)
        await read_exchanges(person.id)
    assert (await db.run(remembered, person))[0] == {"hourly rate": value, "name": "Ada"}


async def test_what_is_said_while_a_note_is_open_waits_and_names_the_note(
    chat_web: str, person: Person, provider: Provider
) -> None:
    await db.run(put_own, person)
    said = "Read the note about the bank. My hourly rate is 80 euros now."
    call = Call("remember", {"content": "80 euros", "key": "hourly rate"})
    provider.script(Call("get_note", {"note_id": "n1"}), call, "Noted.", call, "Done.")
    async with connect(chat_web, person, MemoryText("en", "nowhere", "add").rows()) as client:
        first = await client.say(said)
        assert await db.run(remembered, person) == (OWN, 0, ["80 euros"])
        with person.rest(chat_web) as rest:
            [row] = rest.get("/memory/core?current=proposed").json()
            detail = rest.get(f"/memory/core/{row['id']}").json()
        assert (row["state"], row["content"]) == ("proposed", "80 euros")
        assert detail["sources"][0]["opened"] == [{"table": "notes", "id": "n1"}]
        place = conversation_of(first)
        await client.say("My hourly rate is 80 euros", conversation_id=place)  # borne out
        assert await db.run(remembered, person) == (OWN | {"hourly rate": "80 euros"}, 1, [])
        with person.rest(chat_web) as rest:
            done = rest.post(
                "/memory/take-back", json={"source": {"kind": "conversation", "id": place}}
            ).json()
    assert (done["ok"], done["restored"]) == (True, 1)
    assert await db.run(remembered, person) == (OWN, 0, [])
