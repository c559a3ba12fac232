"""The turn loop: hand-overs over a real socket, and what it does with tools that are not ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import BaseTool, ToolException, tool

from adiuva import llm
from chat.agent_loop import OutputHooks, answer_request, run_agent_loop
from chat.langchain_messages import to_wire
from chat.prompts import system_prompt
from chat.tool_calls import Assistant
from chat.turn_context import LimitReached, TurnContext
from tests.chat.chat_client import DeviceRows, connect, end_frame, prompt_messages, small_limits_web
from tests.factories import Person
from tests.fakes.provider import Call, Fail, Provider, Say
from tests.server_processes import Stack

TASK = {"id": "3f2a9c01d4e54bb0", "title": "Call Ada", "status": "todo"}
HAND_OVER = Call("ask_specialist", {"agent": "tasks", "request": "Create a task Call Bob, due 2026-12-01"})


# ── Hand-over ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_specialist_works_with_its_own_prompt_and_without_the_conversation(
    chat_web: str, person: Person, provider: Provider
) -> None:
    provider.script(
        Say("One moment.", calls=[HAND_OVER]),
        Say("I shall create it.", calls=[Call("create_task", {"title": "Call Bob"})]),
        "Created Call Bob [t1].",
        "It is on your list.",
    )
    history = [
        {"role": "user", "content": "my cat is called Tiger"},
        {"role": "assistant", "content": "A fine name."},
    ]
    async with connect(chat_web, person) as client:
        stream = await client.say("remind me to call Bob", conversation_history=history)
    end = end_frame(stream)

    assert stream.text == "One moment.\n\nIt is on your list."
    assert end["usage"].pop("model").startswith("openai/")
    assert end["usage"] == {"input_tokens": 28, "output_tokens": 20, "model_calls": 4}
    assert [mutation["data"]["title"] for mutation in end["mutations"]] == ["Call Bob"]
    home, specialist, again, last = (call.body for call in provider.chats)
    assert home["messages"][0]["content"] == system_prompt("home").text
    assert specialist["messages"][0] == {"role": "system", "content": system_prompt("tasks").text}
    assert [message["role"] for message in specialist["messages"]] == ["system", "user"]
    turn, _, asked = specialist["messages"][1]["content"].rpartition("\n\n")
    assert turn.startswith("[turn app-") and "\nNow: " in turn
    assert asked == "Create a task Call Bob, due 2026-12-01"
    for body in (specialist, again):
        assert "Tiger" not in str(body)
        assert "remind me" not in str(body)
    names = {schema["function"]["name"] for schema in specialist["tools"]}
    assert "create_task" in names
    assert names.isdisjoint({"ask_specialist", "create_note"})
    assert prompt_messages(again)[0].startswith("Created the task Call Bob [t")
    assert prompt_messages(last) == ["Created Call Bob [t1]."]


async def test_specialists_work_side_by_side(chat_web: str, person: Person, provider: Provider) -> None:
    def answer(request: Any) -> Any:
        messages = request.body["messages"]
        if messages[0]["content"] == system_prompt("home").text:
            if prompt_messages(request.body):
                return f"Both: {prompt_messages(request.body)}"
            return Say(
                calls=[
                    Call("ask_specialist", {"agent": "tasks", "request": "list"}),
                    Call("ask_specialist", {"agent": "notes", "request": "list"}),
                ]
            )
        mine = "tasks" if messages[0]["content"] == system_prompt("tasks").text else "notes"
        return (
            f"{mine} say {prompt_messages(request.body)[0]}"
            if prompt_messages(request.body)
            else Call(f"list_{mine}")
        )

    provider.default = answer
    rows = DeviceRows(tasks=[TASK], notes=[{"id": "n1", "title": "Minutes", "content": "x"}])
    async with connect(chat_web, person, rows) as client:
        stream = await client.say("what is there?")
    assert end_frame(stream)["usage"]["model_calls"] == 6
    tasks, notes = prompt_messages(provider.last)
    assert tasks.startswith("tasks say 1 task:")
    assert notes.startswith("notes say 1 note:")


async def test_a_specialists_calls_count_against_the_turns_limit(
    stack: Stack, person: Person, provider: Provider
) -> None:
    provider.script(Say("I hand it over.", calls=[HAND_OVER]))
    provider.default = lambda request: (
        Call("list_tasks") if request.body.get("tools") else "This is what I have."
    )
    async with connect(small_limits_web(stack, provider), person) as client:
        stream = await client.say("remind me to call Bob")
    end = end_frame(stream)
    assert (end["finish"], end["code"], end["usage"]["model_calls"]) == ("limit", "too_many_model_calls", 5)
    assert len(provider.chats) == 5
    assert stream.text == "I hand it over.\n\nThis is what I have."
    assert "tools" not in provider.last


async def test_a_specialists_write_is_waited_for_when_its_turn_is_cancelled(
    chat_web: str, person: Person, provider: Provider
) -> None:
    provider.script(HAND_OVER, Call("create_task", {"title": "Call Bob"}))
    async with connect(chat_web, person) as client:
        client.silent = True
        key = await client.ask("remind me to call Bob")
        await client.until(lambda: bool(client.unanswered))
        await client.cancel(key)
        await client.settled()
        await client.catch_up()
        end = end_frame(await client.ended(key))
    assert end["finish"] == "cancelled"
    assert [mutation["data"]["title"] for mutation in end["mutations"]] == ["Call Bob"]


# ── Any LangChain tool ──────────────────────────────────────────────────────────────────────────────────


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def burst(word: str) -> str:
    """Break."""
    raise RuntimeError(f"the user's own word {word}")


@tool
def decline() -> str:
    """Say no."""
    raise ToolException("Failed: not today.")


@tool
def exhaust() -> str:
    """Come to a limit."""
    raise LimitReached("deadline")


@tool
async def sleep() -> str:
    """Take long."""
    await asyncio.sleep(60)
    return "slept"


class Talk:
    """An assistant with tools in this process, and the scripted model."""

    def __init__(self, provider: Provider, *tools: BaseTool, max_model_calls: int = 16) -> None:
        self.said: list[str] = []
        self.work = TurnContext(llm.chat_model(provider.settings()), max_model_calls)
        self.assistant = Assistant("home", tools)
        self.messages: list[BaseMessage] = [SystemMessage("Be brief."), HumanMessage("Do it.")]

    async def run(self) -> str:
        return await run_agent_loop(
            self.assistant, self.messages, self.work, OutputHooks(on_text=self.said.append)
        )

    @property
    def results(self) -> list[tuple[str, str]]:
        return [
            (str(message.content), message.status)
            for message in self.messages
            if isinstance(message, ToolMessage)
        ]


@pytest.fixture
async def model(provider: Provider) -> AsyncIterator[Provider]:
    yield provider
    await llm.aclose()


async def test_a_plain_langchain_tool_runs(model: Provider) -> None:
    model.script(Call("add", {"a": 2, "b": 3}), "Five.")
    talk = Talk(model, add)
    assert await talk.run() == "Five."
    assert talk.results == [("5", "success")]
    assert "".join(talk.said) == "Five."
    assert (talk.work.model_calls, talk.work.tool_calls) == (2, 1)


async def test_a_broken_tool_is_reported_without_its_error_text(model: Provider) -> None:
    model.script(Say(calls=[Call("burst", {"word": "secret"}), Call("decline")]), "Sorry.")
    talk = Talk(model, burst, decline)
    assert await talk.run() == "Sorry."
    assert talk.results == [
        ("Failed: the tool broke; it is not known whether anything was changed.", "error"),
        ("Failed: not today.", "error"),
    ]


async def test_a_limit_reached_inside_a_tool_ends_the_turn(model: Provider) -> None:
    model.script(Say(calls=[Call("add", {"a": 1, "b": 1}), Call("exhaust")]))
    with pytest.raises(LimitReached, match="deadline"):
        await Talk(model, add, exhaust).run()


async def test_calls_with_the_same_id_have_a_result_each(model: Provider) -> None:
    model.script(Say(calls=[Call("add", {"a": 1, "b": b}, id="call") for b in (1, 2)]), "Done.")
    talk = Talk(model, add)
    await talk.run()
    assert [text for text, _ in talk.results] == ["2", "3"]
    *_, asked, first, second = model.last["messages"]
    keys = [call["id"] for call in asked["tool_calls"]]
    assert len(set(keys)) == 2
    assert keys == [first["tool_call_id"], second["tool_call_id"]]


async def test_each_call_of_an_answer_has_its_result_behind_it_in_order(model: Provider) -> None:
    calls = [
        Call("add", "{no json", id="a"),
        Call("add", {"a": 1, "b": 1}, id="b"),
        Call("multiply", {"a": 1, "b": 1}, id="c"),
        Call("add", {"a": 1}, id="d"),
    ]
    model.script(Say(calls=calls), "Done.")
    talk = Talk(model, add)
    await talk.run()
    asked = next(message for message in model.last["messages"] if message.get("tool_calls"))
    results = [message["tool_call_id"] for message in model.last["messages"] if message["role"] == "tool"]
    assert [call["id"] for call in asked["tool_calls"]] == results
    assert sorted(results) == ["a", "b", "c", "d"]
    assert next(call for call in asked["tool_calls"] if call["id"] == "a")["function"]["arguments"] == "{}"


async def test_more_calls_than_may_be_made_at_once_are_refused_one_by_one(model: Provider) -> None:
    model.script(Say(calls=[Call("add", {"a": 1, "b": b}) for b in range(70)]), "Done.")
    talk = Talk(model, add)
    await talk.run()
    assert [status for _, status in talk.results] == ["success"] * 64 + ["error"] * 6
    assert talk.results[-1][0] == "Failed: at most 64 tools are called at once; call it again."


async def test_at_the_end_of_its_time_a_tool_is_not_waited_for_and_there_is_an_answer(
    model: Provider,
) -> None:
    model.script(Say(calls=[Call("add", {"a": 1, "b": 1}), Call("sleep")]), "One and one is two.")
    talk = Talk(model, add, sleep)
    talk.work.conclude_at = asyncio.get_running_loop().time() + 0.2
    shown: list[str] = []
    messages: list[BaseMessage] = [HumanMessage("add")]
    with pytest.raises(LimitReached, match="deadline"):
        await answer_request(talk.assistant, messages, talk.work, OutputHooks(on_text=shown.append))
    assert shown == ["One and one is two."]
    asked = model.last
    assert "tools" not in asked and {one["role"] for one in asked["messages"]} <= {
        "system",
        "user",
        "assistant",
    }
    assert "the limit of this request is reached" in asked["messages"][-1]["content"]


async def test_what_tools_have_said_is_told_for_the_last_answer(model: Provider) -> None:
    model.script(Say("I add.", calls=[Call("add", {"a": 20, "b": 22})]), "It is 42.")
    talk = Talk(model, add, max_model_calls=1)
    with pytest.raises(LimitReached, match="too_many_model_calls"):
        await answer_request(talk.assistant, [HumanMessage("add")], talk.work, OutputHooks())
    *_, said, asked = model.last["messages"]
    assert said == {"role": "assistant", "content": "I add."}
    assert "42" in asked["content"] and talk.work.model_calls == 2


async def test_a_model_that_fails_at_the_last_answer_ends_as_the_limit_says(model: Provider) -> None:
    model.script(Say(calls=[Call("add", {"a": 1, "b": 1})]), Fail(401))
    talk = Talk(model, add, max_model_calls=1)
    with pytest.raises(LimitReached, match="too_many_model_calls"):
        await answer_request(talk.assistant, [HumanMessage("add")], talk.work, OutputHooks())


async def test_model_calls_are_limited(model: Provider) -> None:
    model.default = Call("add", {"a": 1, "b": 1})
    with pytest.raises(LimitReached, match="too_many_model_calls"):
        await Talk(model, add, max_model_calls=3).run()
    assert len(model.chats) == 3


def test_a_message_without_text_has_no_content_where_it_calls_tools() -> None:
    call = {"type": "tool_call", "id": "a", "name": "add", "args": {"a": 1}}
    assert to_wire([AIMessage("", tool_calls=[call])]) == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
            ],
        }
    ]
