"""Settings of models, by their effect on requests, as the provider sees them."""

from __future__ import annotations

from typing import Any

import pytest
from pytest_django import Settings

from adiuva import llm
from adiuva.llm.openai_client import DEFAULT_BASE, OpenAIChat
from adiuva.llm.transport import Endpoint
from adiuva.llm.types import ModelRequest
from tests.fakes.provider import Provider
from tests.llm.test_llm import ASK, SCHEMA, everything, provider

__all__ = ["provider"]


async def test_a_model_is_asked_for_its_purpose_with_what_its_provider_takes_besides(
    provider: Provider, settings: Settings
) -> None:
    settings.MODEL = provider.settings("one")
    settings.MODELS_BY_PURPOSE = {"chat": "", "extraction": "openai/reader", "memory": "openai/keeper"}
    settings.MODEL_EXTRAS = {"keep_alive": "1h", "model": "not this", "max_tokens": 1}
    provider.default = '{"a": 1}'
    await everything(llm.chat_model(), max_tokens=7, temperature=0.3)
    await llm.chat_model(purpose="extraction").structured(ASK, name="thing", schema=SCHEMA)
    await llm.chat_model(purpose="memory").complete(ASK, max_tokens=9, temperature=0.0)
    await llm.aclose()
    asked: list[dict[str, Any]] = [call.body for call in provider.chats]
    assert [(one["model"], one["max_tokens"], one["temperature"]) for one in asked] == [
        ("one", 7, 0.3),
        ("reader", 8_192, 0.0),
        ("keeper", 9, 0.0),
    ]
    assert {one["keep_alive"] for one in asked} == {"1h"}


async def test_an_answer_gets_no_more_than_the_window_has_left(
    provider: Provider, settings: Settings
) -> None:
    settings.MODEL_CONTEXT_WINDOW = 1_000
    model = llm.chat_model(provider.settings("narrow"))
    await model.complete([{"role": "user", "content": "x" * 1_500}], max_tokens=4_096, temperature=0.0)
    await llm.aclose()
    assert 400 < provider.last["max_tokens"] < 500


@pytest.mark.parametrize(("base", "is_openai"), [(DEFAULT_BASE, True), ("http://127.0.0.1:8080/v1", False)])
def test_openai_gets_a_cache_key_that_follows_the_system_message_alone(base: str, is_openai: bool) -> None:
    model = OpenAIChat("openai/gpt-4.1-mini", Endpoint(base, "a-key-of-the-tests"))

    def body(system: str, user: str) -> dict[str, Any]:
        messages: list[llm.Message] = [
            {"role": "system", "content": system},
            {"role": "user", "content": user},
        ]
        return model._body(ModelRequest(messages, None, None, 5, 0.0), frozenset())

    keys = [body(*said).get("prompt_cache_key") for said in (("a", "x"), ("a", "y"), ("b", "x"))]
    assert (keys[0] == keys[1] != keys[2] and len(str(keys[0])) == 32) if is_openai else set(keys) == {None}
    limit = (
        "max_completion_tokens" if is_openai else "max_tokens"
    )  # OpenAI's newer models know only its new name
    assert body("a", "x")[limit] == 5
