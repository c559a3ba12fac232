"""A turn with a tool, in the dialect of each family of endpoints: the row is there, and only the answer is shown."""

from __future__ import annotations

import json

import pytest

from tests.chat.chat_client import DeviceRows, connect, end_frame
from tests.factories import Person
from tests.fakes.dialects import CALLS_AS_TEXT, DIALECTS
from tests.fakes.provider import Call, Provider, Raw, Say

CALLS = [Call("create_task", {"title": "Call Bob"}), Call("create_task", {"title": "Call Ada"})]
REQUEST = "create two tasks: call Bob, call Ada"
ONE_CALL = {"function_call", "text_generation_inference"}  # these know no more


@pytest.mark.parametrize("name", DIALECTS)
async def test_a_tool_is_called_and_the_answer_shown(
    chat_web: str, person: Person, provider: Provider, name: str
) -> None:
    dialect, calls = DIALECTS[name], CALLS[: 1 if name in ONE_CALL else 2]
    provider.script(dialect("", calls), dialect("All done.", ()))
    rows = DeviceRows()
    async with connect(chat_web, person, rows) as client:
        stream = await client.say(REQUEST)
    end = end_frame(stream)
    made = {row["title"] for row in rows.tables.get("tasks", [])}  # at the same time, so in any order
    assert made == {call.arguments["title"] for call in calls}
    assert (stream.text.replace("\n", " ").strip().replace("Alldone", "All done"), end["finish"], end.get("code")) == (
        "All done.", "stop", None,
    )  # fmt: skip
    # What the model is shown of its own call is what it was.
    shown = provider.last["messages"][-len(calls) - 1]["tool_calls"]
    assert [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in shown] == [
        (call.name, call.arguments) for call in calls
    ]
    assert len({one["id"] for one in shown}) == len(calls)


@pytest.mark.parametrize("name", CALLS_AS_TEXT)
async def test_a_call_that_a_server_did_not_understand_is_never_shown(
    chat_web: str, person: Person, provider: Provider, name: str
) -> None:
    text = CALLS_AS_TEXT[name](CALLS[0])
    provider.script(Say(text), CALLS[0], "All done.")
    rows = DeviceRows()
    async with connect(chat_web, person, rows) as client:
        stream = await client.say(REQUEST)
    assert (stream.text.strip(), end_frame(stream)["finish"]) == ("All done.", "stop")
    assert [row["title"] for row in rows.tables["tasks"]] == ["Call Bob"]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, "Value is not callable: null at row 12 (chat template)"),
        (500, '{"detail":"raise_exception: Conversation roles must alternate user/assistant"}'),
        (
            400,
            "Only user, assistant and tool roles are supported, with the exception of an initial system message",
        ),
    ],
)
async def test_a_template_that_fails_is_told_as_a_failure_and_tried_a_few_times_at_most(
    chat_web: str, person: Person, provider: Provider, status: int, message: str
) -> None:
    body = json.dumps({"error": {"code": status, "message": message, "type": "server_error"}})
    provider.default = Raw(body.encode(), status=status)
    async with connect(chat_web, person) as client:
        stream = await client.say(REQUEST)
    end = end_frame(stream)
    assert (end["finish"], end["mutations"], bool(end["code"])) == ("error", [], True)
    assert message not in stream.text
    assert len(provider.chats) <= 6
