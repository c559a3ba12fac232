"""Models that read little at once: a chat with one of 4,096 tokens, whose endpoint refuses what is longer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adiuva.core import db
from tests.chat.chat_client import DeviceRows, connect, conversation_of, stored_messages
from tests.factories import somebody
from tests.fakes.provider import Call, Provider, Raw, Request, Say
from tests.server_processes import Stack

WINDOW = 4_096
_BYTES_PER_TOKEN = 4


def small(request: Request) -> Any:
    """Refuses like llama.cpp's server; else reads a note or lists the tasks where it is told to, and answers."""
    tokens = len(json.dumps([request.body["messages"], request.body.get("tools")])) // _BYTES_PER_TOKEN
    if tokens + request.body["max_tokens"] > WINDOW:
        error = {"code": 400, "message": "the request exceeds the available context size", "n_ctx": WINDOW}
        return Raw(json.dumps({"error": error}).encode(), status=400)
    last = request.body["messages"][-1]
    usage = (tokens, 5)
    if last["role"] == "user" and "note" in last["content"].splitlines()[-1]:
        return Say(calls=[Call("get_note", {"note_id": "n1"})], usage=usage)
    if last["role"] == "user" and "tasks" in last["content"].splitlines()[-1]:
        return Say(calls=[Call("list_tasks")], usage=usage)
    return Say("word " * 100, usage=usage)


@pytest.fixture
def web_of_small_model(stack: Stack) -> str:
    return stack.web(ADIUVA_MODEL="openai/small")


async def test_a_chat_goes_on_and_says_what_was_left_out(
    web_of_small_model: str, provider: Provider, committed_db: str
) -> None:
    provider.default = small
    person = await db.run(somebody)
    rows = DeviceRows(
        tasks=[
            {"id": f"t{n}", "title": f"Task {n} {'about this ' * 8}", "status": "todo"} for n in range(200)
        ],
        notes=[{"id": "n1", "title": "Long", "content": "One line of the note.\n" * 2_000}],
    )
    async with connect(web_of_small_model, person, rows) as client:
        stream = await client.say("What are my tasks?")
        assert stream.end and stream.end["finish"] == "stop" and stream.end["notices"] == ["left_out"]
        conversation = conversation_of(stream)
        for said in ("Read the note.", "And the note again?", "Which tasks are there?", "Hm.", "And now?"):
            stream = await client.say(said, conversation_id=conversation)
            assert stream.end and (stream.end["finish"], stream.end.get("code")) == ("stop", None)
    told = [one["text"] for one in await stored_messages(web_of_small_model, person, conversation)]
    assert any("The model reads little at once" in text for text in told)
    taken = [call for call in provider.chats if isinstance(small(call), Say)]
    assert max(len(json.dumps(call.body["messages"])) for call in taken) < WINDOW * _BYTES_PER_TOKEN
    assert all(
        call.body["messages"][0] == taken[0].body["messages"][0] for call in taken if call.body.get("tools")
    )
