"""Answers of stand-in models: which one answered, and what it cannot do, told to the user and at the stream's end."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pytest_django import Settings

from adiuva import llm
from chat.models import AssistantKind
from chat.request import ChatRequest
from chat.whole_turns import TurnResult, run_to_end
from tests.factories import Person
from tests.fakes.provider import Call, Fail, Provider, Request

NO_TOOLS = "This server's model cannot use tools: it can neither look at your data nor change it."


@pytest.fixture
async def named(provider: Provider, settings: Settings) -> AsyncIterator[str]:
    """A model of which nothing is known, with another one behind it. Turns run in the test's own process."""
    name = uuid.uuid4().hex
    settings.MODEL = settings.MODEL | provider.settings(name)
    settings.MODEL_FALLBACKS = [f"openai/{name}-stand-in"]
    yield name
    await llm.aclose()


async def say(person: Person, message: str, **fields: Any) -> TurnResult:
    request = ChatRequest(
        user_id=person.id,
        request_id=uuid.uuid4().hex,
        kind=AssistantKind.HOME,
        message=message,
        expects_device=False,
        memory=False,
        **fields,
    )
    return await run_to_end(request)


async def test_the_user_is_told_of_a_stand_in_and_of_what_it_cannot_do(
    named: str, person: Person, provider: Provider
) -> None:
    def answer(request: Request) -> Any:
        if request.body["model"] == named:
            return Fail(404)
        return Fail(400, message="does not support tools") if request.body.get("tools") else "Hello."

    provider.default = answer
    first = await say(person, "hello", starts_conversation=True)
    sentence = f"The usual model could not answer, so another one stood in: {named}-stand-in."
    assert first.text == f"Hello.\n\n{NO_TOOLS}\n\n{sentence}"
    assert (first.finish, first.notices) == ("stop", ["no_tools", "other_model"])
    assert first.usage.model == f"openai/{named}-stand-in"
    again = await say(person, "hello again", conversation_id=str(first.conversation_id))
    assert again.text == "Hello." and again.notices == [
        "no_tools",
        "other_model",
    ]  # said once, marked each time


async def test_a_model_that_dies_between_calls_leaves_its_results_to_one_without_tools(
    named: str, person: Person, provider: Provider
) -> None:
    def answer(request: Request) -> Any:
        is_first_call = not any(one["role"] == "tool" for one in request.body["messages"])
        if request.body["model"] == named:
            return Call("list_tasks") if is_first_call else Fail(404)
        return Fail(400, message="no tools here") if request.body.get("tools") else "I could not look."

    provider.default = answer
    result = await say(person, "what are my tasks?")
    assert result.text.startswith("I could not look.") and result.finish == "stop"
    assert result.notices == ["no_tools", "other_model"] and result.usage.model_calls == 2
    roles = [one["role"] for one in provider.chats[-1].body["messages"]]
    assert roles == ["system", "user", "assistant", "user"]


async def test_the_configured_model_is_named_and_nothing_is_said_of_it(
    named: str, person: Person, provider: Provider
) -> None:
    result = await say(person, "hello")
    assert (result.text, result.notices, result.usage.model) == ("ok", [], f"openai/{named}")
