"""Models that stand in for one that cannot answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from pytest_django import Settings

from adiuva import llm
from adiuva.llm.fallback import FallbackChat
from tests.fakes.provider import Break, Fail, Provider, Raw, Request
from tests.llm.test_llm import ASK, everything, provider, text_of

__all__ = ["provider"]


@pytest.fixture
async def model(provider: Provider, settings: Settings) -> AsyncIterator[llm.ChatModel]:
    settings.MODEL = provider.settings("first")
    settings.MODEL_FALLBACKS = ["openai/second", "openai/third"]
    yield llm.chat_model()
    await llm.aclose()


def asked(provider: Provider) -> list[str]:
    return [call.body["model"] for call in provider.chats]


def only(answering: str, fault: object) -> object:
    return lambda request: f"I am {answering}" if request.body["model"] == answering else fault


@pytest.mark.parametrize(
    ("fault", "tries"),
    [
        (Fail(503), 3),
        (Fail(404), 1),
        (Fail(429, code="insufficient_quota"), 1),
        (Fail(429, retry_after=999), 1),
    ],
)
async def test_the_next_one_answers(
    provider: Provider, model: llm.ChatModel, fault: Fail, tries: int
) -> None:
    provider.default = only("third", fault)
    assert (await model.complete(ASK)).text == "I am third"
    assert asked(provider) == ["first"] * tries + ["second"] * tries + ["third"]
    # What has just failed is not the first to be asked.
    assert text_of(await everything(model)) == "I am third" and asked(provider)[-1] == "third"
    assert len(asked(provider)) == 2 * tries + 2


async def test_none_takes_over_once_an_answer_has_begun(provider: Provider, model: llm.ChatModel) -> None:
    provider.script(Break(at="text", text="Half an ans"))
    with pytest.raises(llm.ModelInterrupted):
        await everything(model)
    assert asked(provider) == ["first"]


async def test_what_is_wrong_with_the_request_is_not_asked_of_another(
    provider: Provider, model: llm.ChatModel
) -> None:
    provider.default = Fail(400, message="the context length is 4096")
    with pytest.raises(llm.ModelContextExceeded):
        await model.complete(ASK)
    assert asked(provider) == ["first"]


async def test_the_window_is_that_of_the_model_which_stands_in(
    provider: Provider, model: llm.ChatModel
) -> None:
    def answer(request: Request) -> object:
        if request.body["model"] == "first":
            return Fail(404)
        error = {"code": 400, "message": "the request exceeds the available context size", "n_ctx": 4096}
        return Raw(json.dumps({"error": error}).encode(), status=400)

    provider.default = answer
    with pytest.raises(llm.ModelContextExceeded):
        await model.complete(ASK)
    assert model.window.tokens == 4096  # the second one's, which is asked first now
    provider.default = "I am back"
    assert isinstance(model, FallbackChat)
    model._avoided_until[model.models[0]] = 0.0
    assert (await model.complete(ASK)).text == "I am back" and asked(provider)[-1] == "first"
    assert model.window.tokens == 0


async def test_if_all_fail_the_first_ones_error_is_raised(provider: Provider, model: llm.ChatModel) -> None:
    def fail(request: Request) -> Fail:
        return Fail(401) if request.body["model"] == "first" else Fail(404)

    provider.default = fail
    with pytest.raises(llm.ModelRejected, match="key"):
        await everything(model)
    assert asked(provider) == ["first", "second", "third"]


def test_all_are_of_one_provider(settings: Settings) -> None:
    settings.MODEL, settings.MODEL_FALLBACKS = {"model": "openai/first"}, ["anthropic/claude"]
    with pytest.raises(llm.ModelNotConfigured, match="another provider"):
        llm.chat_model()
