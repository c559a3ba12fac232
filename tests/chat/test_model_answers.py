"""Answers as models really give them: empty, cut off, refused, in parts, with calls of odd shapes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.chat.chat_client import (
    DeviceRows,
    connect,
    conversation_of,
    end_frame,
    prompt_messages,
    stored_messages,
)
from tests.factories import Person
from tests.fakes.provider import Call, Fail, Provider, Raw, Say

EMPTY_WORDS = "The model gave no answer, twice. What was done so far stays."
REFUSED_WORDS = "The model's provider refuses to answer this."
CUT_WORDS = "The model's answer was cut off at its length limit. Ask for the rest, or for something shorter."
CALL_AS_TEXT = '{"name": "create_task", "arguments": {"title": "Call Bob"}}'


def events(*chunks: Any, done: bool = True) -> Raw:
    """A stream of these chunks, as they are."""
    lines = [f"data: {json.dumps(each)}\n\n" for each in chunks]
    body = "".join([*lines, "data: [DONE]\n\n" if done else ""])
    return Raw(body.encode(), content_type="text/event-stream")


def delta(finish: str | None = None, **given: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": given, "finish_reason": finish}]}


REASONING_ONLY = events(delta(reasoning_content="I should greet."), delta("stop", content=""))
REFUSAL = events(delta(refusal="I cannot help with that."), delta("stop"))
UNUSABLE = {
    "empty": Say(""),
    "blanks": Say(" \n \n"),
    "thoughts only": Say("<think>I should say hello.</think>"),
    "unended thoughts": Say("<think>I should say", finish="length"),
    "reasoning only": REASONING_ONLY,
    "nothing but [DONE]": events(),
    "a call written as text": Say(CALL_AS_TEXT),
    "parts without text": events(delta(content=[{"type": "thinking", "thinking": []}]), delta("stop")),
    "refused": Say("", finish="content_filter"),
    "a refusal": REFUSAL,
}
REFUSED = ("refused", "a refusal")


@pytest.mark.parametrize("kind", UNUSABLE)
async def test_an_answer_that_shows_nothing_is_asked_for_once_more(
    chat_web: str, person: Person, provider: Provider, kind: str
) -> None:
    provider.script(UNUSABLE[kind], "Hello.")
    async with connect(chat_web, person) as client:
        stream = await client.say("hello")
    end = end_frame(stream)
    assert (stream.text.strip(), end["finish"], end.get("code")) == ("Hello.", "stop", None)
    assert (end["usage"]["model_calls"], len(provider.chats)) == (2, 2)


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize("kind", UNUSABLE)
async def test_if_the_second_is_no_better_it_is_said_in_words_and_by_the_finish(
    chat_web: str, person: Person, provider: Provider, kind: str, protocol: int
) -> None:
    provider.script(UNUSABLE[kind], UNUSABLE[kind], Fail(400))
    async with connect(chat_web, person, protocol=protocol) as client:
        stream = await client.say("hello")
    is_refused = kind in REFUSED
    assert stream.text.strip() == (REFUSED_WORDS if is_refused else EMPTY_WORDS)
    assert len(provider.chats) == 2
    if protocol == 2:
        end = end_frame(stream)
        assert (end["finish"], end["code"]) == (
            ("limit", "content_filter") if is_refused else ("error", "model_empty")
        )
        answer = (await stored_messages(chat_web, person, conversation_of(stream)))[-1]
        assert (answer["text"].strip(), answer["finish"]) == (stream.text.strip(), end["finish"])


async def test_a_model_that_writes_its_call_as_text_is_told_so(
    chat_web: str, person: Person, provider: Provider
) -> None:
    rows = DeviceRows()
    provider.script(Say(CALL_AS_TEXT), Call("create_task", {"title": "Call Bob"}), "Created.")
    async with connect(chat_web, person, rows) as client:
        stream = await client.say("create a task to call Bob")
    assert (stream.text.strip(), len(end_frame(stream)["mutations"])) == ("Created.", 1)
    asked = provider.chats[1].body["messages"]
    assert [message["role"] for message in asked[-2:]] == ["assistant", "user"]
    assert "written as text is not made" in asked[-1]["content"]


async def test_what_was_changed_before_an_empty_answer_is_told(
    chat_web: str, person: Person, provider: Provider
) -> None:
    provider.script(Call("create_task", {"title": "Call Bob"}), Say(""), Say(""))
    async with connect(chat_web, person) as client:
        stream = await client.say("create a task to call Bob")
    end = end_frame(stream)
    assert (stream.text, end["code"], len(end["mutations"])) == (EMPTY_WORDS, "model_empty", 1)


async def test_a_specialists_empty_answer_is_asked_for_once_more(
    chat_web: str, person: Person, provider: Provider
) -> None:
    delegated = Call("ask_specialist", {"agent": "tasks", "request": "look"})
    provider.script(delegated, Say("<think>hm</think>"), "Nothing is due.", "All clear.")
    async with connect(chat_web, person) as client:
        stream = await client.say("is anything due?")
    assert (stream.text, prompt_messages(provider.last)) == ("All clear.", ["Nothing is due."])


# ── Cut off ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_rest_of_an_answer_that_was_cut_off_is_asked_for_and_joined(
    chat_web: str, person: Person, provider: Provider
) -> None:
    provider.script(Say("Three tasks are op", finish="length"), "en: Ada, Bob and Cleo.")
    async with connect(chat_web, person) as client:
        stream = await client.say("what is open?")
    end = end_frame(stream)
    assert (stream.text, end["finish"]) == ("Three tasks are open: Ada, Bob and Cleo.", "stop")
    asked = provider.chats[1].body["messages"]
    assert asked[-2] == {"role": "assistant", "content": "Three tasks are op"}
    assert "cut off" in asked[-1]["content"]


async def test_an_answer_that_is_cut_off_twice_ends_as_a_limit(
    chat_web: str, person: Person, provider: Provider
) -> None:
    provider.script(Say("One, ", finish="length"), Say("two, ", finish="length"))
    async with connect(chat_web, person) as client:
        stream = await client.say("count")
    end = end_frame(stream)
    assert stream.text == f"One, two, \n\n{CUT_WORDS}"
    assert (end["finish"], end["code"], len(provider.chats)) == ("limit", "answer_cut_off", 2)


@pytest.mark.parametrize("arguments", ["", '{"title": "Call Bo', '{"title": "Call Bob"'])
async def test_a_call_that_was_cut_off_is_not_made_and_the_model_is_told(
    chat_web: str, person: Person, provider: Provider, arguments: str
) -> None:
    rows = DeviceRows()
    calls = [Call("create_task", {"title": "Call Ada"}), Call("create_task", arguments)]
    provider.script(Say(calls=calls, finish="length"), "One of them.")
    async with connect(chat_web, person, rows) as client:
        await client.say("create both")
    assert [row["title"] for row in rows.tables["tasks"]] == ["Call Ada"]
    assert "was cut off at the length limit" in prompt_messages(provider.last)[1]


async def test_calls_of_an_answer_that_a_filter_has_cut_are_not_made(
    chat_web: str, person: Person, provider: Provider
) -> None:
    rows = DeviceRows()
    provider.script(Say(calls=[Call("create_task", {"title": "Call"})], finish="content_filter"), "Sorry.")
    async with connect(chat_web, person, rows) as client:
        stream = await client.say("create it")
    assert (stream.text, rows.calls) == ("Sorry.", [])


# ── Odd shapes ──────────────────────────────────────────────────────────────────────────────────────────


async def test_content_in_parts_a_second_finish_and_no_usage_are_as_good(
    chat_web: str, person: Person, provider: Provider
) -> None:
    provider.script(
        events(
            delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
            delta(content=[{"type": "text", "text": "Hel"}]),
            delta(content="lo."),
            delta("stop", content=""),
            delta("stop"),
            done=False,
        )
    )
    async with connect(chat_web, person) as client:
        stream = await client.say("hello")
    end = end_frame(stream)
    assert (stream.text, end["finish"]) == ("Hello.", "stop")
    assert end["usage"]["output_tokens"] > 0  # estimated


@pytest.mark.parametrize("has_index", [True, False])
@pytest.mark.parametrize("ids", [("a", "b", "c"), (None, None, None), ("", "", "")])
async def test_a_call_in_pieces_is_made_once_whatever_its_ids(
    chat_web: str, person: Person, provider: Provider, ids: tuple[str | None, ...], has_index: bool
) -> None:
    rows = DeviceRows()
    index = {"index": 0} if has_index else {}
    functions = [
        {"name": "create_task", "arguments": ""},
        {"arguments": '{"title": '},
        {"arguments": '"Call Ada"}'},
    ]
    pieces = [
        delta(tool_calls=[{**index, "id": call_id, "type": "function", "function": function}])
        for call_id, function in zip(ids, functions, strict=True)
    ]
    provider.script(events(*pieces, delta("tool_calls")), "Created.")
    async with connect(chat_web, person, rows) as client:
        stream = await client.say("create a task to call Ada")
    assert (stream.text, [row["title"] for row in rows.tables["tasks"]]) == ("Created.", ["Call Ada"])


NOTHING_CHANGED = "Please note: nothing was created, changed or deleted."


@pytest.mark.parametrize(
    ("asked", "steps", "is_said"),
    [
        ("Add a task: call Bob", ["I've created the task."], True),
        ("Add a task: call Bob", [Call("create_task", {}), "I've created the task."], True),
        (
            "Add a task: call Bob",
            [Call("create_task", {"title": "Call Bob"}), "I've created the task."],
            False,
        ),
        ("Add a task: call Bob", ["For which project?"], False),
        ("Was the invoice paid?", ["I've noted that it was paid."], False),
        ("Remove the task t1", [Call("delete_task", {"task_id": "t1"}), "I have deleted it."], False),
    ],
)
async def test_a_claim_of_a_change_that_did_not_happen_is_put_right(
    chat_web: str, person: Person, provider: Provider, asked: str, steps: list[Any], is_said: bool
) -> None:
    provider.script(*steps)
    rows = DeviceRows(tasks=[{"id": "t1", "title": "Call Ada", "status": "todo"}])
    async with connect(chat_web, person, rows) as client:
        stream = await client.say(asked)
    assert (NOTHING_CHANGED in stream.text) == is_said, stream.text
    assert end_frame(stream).get("notices") == (["nothing_changed"] if is_said else None)


async def test_what_the_provider_had_in_its_cache_is_told(
    chat_web: str, person: Person, provider: Provider
) -> None:
    details = {
        "prompt_tokens": 1_500,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 1_024},
    }
    provider.script(events(delta("stop", content="Hello."), {"choices": [], "usage": details}))
    async with connect(chat_web, person) as client:
        end = end_frame(await client.say("hello"))
    assert end["usage"] == {
        "input_tokens": 1_500, "output_tokens": 3, "model_calls": 1, "cached_tokens": 1_024,
        "model": "openai/scripted",
    }  # fmt: skip
