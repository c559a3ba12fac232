"""Floating requests: what they are about is said first, and the row that is open is in the prompt."""

from __future__ import annotations

import pytest

from chat.prompts import system_prompt
from tests.chat.chat_client import (
    DeviceRows,
    Frame,
    connect,
    conversation_of,
    conversation_words,
    end_frame,
    prompt_messages,
    said_words,
    small_limits_web,
    wait_for,
)
from tests.factories import Person
from tests.fakes.provider import Call, Fail, Hold, Provider, Say
from tests.server_processes import Stack

FRIDAY = 4_098_816_000_000  # 2099-11-20, midnight in UTC
ROWS = {
    "tasks": [
        {
            "id": "t1",
            "title": "Call Ada",
            "status": "todo",
            "dueDate": FRIDAY,
            "description": "About the menu.",
        }
    ],
    "projects": [{"id": "p1", "name": "Harbour Café", "status": "active", "aiSummary": "Opens in spring."}],
    "notes": [{"id": "n1", "title": "Minutes", "content": "We drink tea.\nAnd coffee."}],
    "timelines": [{"id": "m1", "projectId": "p1", "title": "Opening", "date": FRIDAY}],
}
WORKSPACE = {"type": "workspace"}


@pytest.fixture
def rows() -> DeviceRows:
    return DeviceRows(**{table: [dict(row) for row in found] for table, found in ROWS.items()})


def domain(frames: list[Frame]) -> str:
    """What a request is said to be about, which comes once and before all else."""
    assert [frame["type"] for frame in frames[:2]] == ["floating_domain", "stream_start"]
    assert [frame["type"] for frame in frames].count("floating_domain") == 1
    return str(frames[0]["domain"])


@pytest.mark.parametrize(
    ("scope", "about", "shown"),
    [
        (
            {"type": "task", "id": "t1"},
            "tasks",
            [
                "The user looks at this task:\n- Call Ada [t1], todo, due Fri 2099-11-20",
                "| About the menu.",
            ],
        ),
        (
            {"type": "project", "id": "p1"},
            "projects",
            ["The user looks at this project:\n- Harbour Café [p1], active", "| Opens in spring."],
        ),
        (
            {"type": "note", "id": "n1"},
            "notes",
            ["The user looks at this note:\n- Minutes [n1]", "| We drink tea.\n| And coffee."],
        ),
        (
            {"type": "timeline", "id": "m1"},
            "timelines",
            ["The user looks at this timeline:\n- Opening [e1], Fri 2099-11-20"],
        ),
    ],
    ids=["task", "project", "note", "timeline"],
)
async def test_the_scopes_row_is_read_and_given_to_the_model(
    chat_web: str,
    person: Person,
    provider: Provider,
    rows: DeviceRows,
    scope: Frame,
    about: str,
    shown: list[str],
) -> None:
    provider.script("Here it is.")
    async with connect(chat_web, person, rows) as client:
        stream = await client.say("what is this?", scope=scope)
    assert domain(stream.frames) == about
    assert (stream.text, end_frame(stream)["usage"]["model_calls"]) == ("Here it is.", 1)
    messages = provider.last["messages"]
    assert messages[0]["content"] == system_prompt("floating").text
    assert messages[-1]["role"] == "user" and said_words(messages[-1]) == "what is this?"
    for part in shown:
        assert part in messages[-1]["content"]
    assert [call["action"] for call in rows.calls] == ["get"]


async def test_the_domain_is_said_before_the_device_and_the_model_answer(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    hold = Hold("Here it is.")
    provider.script(hold)
    async with connect(chat_web, person, rows) as client:
        client.silent = True
        key = await client.ask("what is this?", scope={"type": "note", "id": "n1"})
        await client.until(lambda: key in client.streams and len(client.streams[key].frames) == 2)
        await client.until(lambda: bool(client.unanswered))
        assert provider.calls == []
        await client.catch_up()
        await wait_for(hold.reached)
        hold.release()
        assert domain((await client.ended(key)).frames) == "notes"


@pytest.mark.parametrize(
    ("call", "about"),
    [
        (Call("list_notes"), "notes"),
        (Call("list_task_comments", {"task_id": "t1"}), "tasks"),
        (Call("list_clients"), "projects"),
        (Call("list_timelines"), "timelines"),
        (Call("ask_specialist", {"agent": "notes", "request": "sum them up"}), "notes"),
    ],
    ids=["notes", "comments", "clients", "timelines", "hand-over"],
)
async def test_of_the_whole_workspace_the_first_tool_says_what_it_is_about(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows, call: Call, about: str
) -> None:
    provider.script(Say(calls=[call, Call("list_tasks")]))
    provider.default = "All of it."
    async with connect(chat_web, person, rows) as client:
        stream = await client.say("what about milestones?", scope=WORKSPACE)
    assert domain(stream.frames) == about
    assert stream.text.endswith("All of it.")
    assert "The user looks at the workspace as a whole." in provider.chats[0].body["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("message", "about"),
    [
        ("which milestones are next?", "timelines"),
        ("read my notes to me", "notes"),
        ("how are my clients?", "projects"),
        ("what shall I do?", "tasks"),
    ],
)
async def test_where_text_comes_first_the_question_says_what_it_is_about(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows, message: str, about: str
) -> None:
    provider.script(Say("Let me see.", calls=[Call("list_tasks")]), "Done.")
    async with connect(chat_web, person, rows) as client:
        stream = await client.say(message, scope=WORKSPACE)
    assert domain(stream.frames) == about
    assert stream.text == "Let me see.\n\nDone."


async def test_an_approval_comes_after_what_the_request_is_about(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    provider.script(Call("delete_note", {"note_id": "n1"}), "I left it.")
    async with connect(chat_web, person, rows, capabilities=["dedupe", "approval"]) as client:
        key = await client.ask("delete the minutes", scope=WORKSPACE)
        await client.decide((await client.asked_for(key))["id"], False)
        stream = await client.ended(key)
    assert domain(stream.frames) == "notes"
    end_frame(stream)


async def test_a_row_that_is_not_there_is_said_to_be_gone(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    provider.script("It is gone.")
    async with connect(chat_web, person, rows) as client:
        stream = await client.say("what is this?", scope={"type": "task", "id": "t9"})
    assert (stream.text, end_frame(stream)["finish"]) == ("It is gone.", "stop")
    assert "a task that is not there any more ([t1])" in provider.last["messages"][-1]["content"]


async def test_a_scope_without_an_id_is_a_kind_of_rows(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    provider.script("Which one?")
    async with connect(chat_web, person, rows) as client:
        stream = await client.say("what is this?", scope={"type": "timeline"})
    assert domain(stream.frames) == "timelines"
    assert "The user looks at the timelines." in provider.last["messages"][-1]["content"]
    assert rows.calls == []


async def test_a_row_that_cannot_be_read_is_said_to_be_that(
    stack: Stack, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    web = small_limits_web(stack, provider)
    provider.script("I cannot see it.")
    async with connect(web, person, rows) as client:
        client.silent = True
        stream = await client.say("what is this?", scope={"type": "task", "id": "t1"})
    assert (stream.text, end_frame(stream)["finish"]) == ("I cannot see it.", "stop")
    tail = provider.last["messages"][-1]["content"]
    assert "The user looks at the task [t1]. Failed: the device did not answer in time." in tail


async def test_a_device_that_went_away_does_not_end_a_floating_request(
    stack: Stack, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    web = small_limits_web(stack, provider)
    hold = Hold(Call("list_tasks"))
    provider.script(hold, "Your device is offline.")
    async with connect(web, person, rows) as client:
        key = await client.ask("what is open?", scope=WORKSPACE)
        await wait_for(hold.reached)
    hold.release()
    async with connect(web, person, device_id="phone", streams=[{"request_id": key, "after": -1}]) as phone:
        stream = await phone.ended(key)
    assert (domain(stream.frames), stream.text) == ("tasks", "Your device is offline.")
    assert prompt_messages(provider.last) == [
        "Failed: the device is offline, so nothing was read or changed."
    ]


@pytest.mark.parametrize("protocol", [1, 2])
async def test_a_floating_request_that_fails_is_about_something_all_the_same(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows, protocol: int
) -> None:
    provider.script(Fail(400))
    async with connect(chat_web, person, rows, protocol=protocol) as client:
        failed = await client.say("any notes?", scope=WORKSPACE)
        refused = await client.say(" ", scope=WORKSPACE)
    assert (domain(failed.frames), domain(refused.frames)) == ("notes", "tasks")
    assert failed.kinds()[-1] == refused.kinds()[-1] == "stream_end"
    assert len(provider.chats) == 1


async def test_a_floating_conversation_goes_on(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    scope = {"type": "task", "id": "t1"}
    provider.script("It is about the menu.", "On Friday.")
    async with connect(chat_web, person, rows) as client:
        first = await client.say("what is this?", scope=scope)
        await client.say("and when?", scope=scope, conversation_id=conversation_of(first))
    words = conversation_words(provider.last)
    assert words == ["what is this?", "It is about the menu.", "and when?"]
