"""Structured answers that are checked, and repaired by the model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from adiuva import llm
from adiuva.llm import transport
from adiuva.llm.structured import UnusableAnswer, ask_structured
from tests.fakes.provider import Fail, Provider

QUESTION: list[llm.Message] = [{"role": "user", "content": "How many?"}]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"count": {"type": "integer"}}}


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    monkeypatch.setattr(transport, "FIRST_BACKOFF_S", 0.01)
    with Provider() as running:
        yield running


@pytest.fixture
async def model(provider: Provider) -> AsyncIterator[llm.ChatModel]:
    yield llm.chat_model(provider.settings())
    await llm.aclose()


def read(value: Any) -> int:
    if not isinstance(value, dict) or not isinstance(value.get("count"), int):
        raise UnusableAnswer("`count` must be a number.")
    return int(value["count"])


async def ask(model: llm.ChatModel, **options: Any) -> int:
    return await ask_structured(model, QUESTION, name="count", schema=SCHEMA, read=read, **options)


async def test_a_usable_answer_is_not_asked_for_again(provider: Provider, model: llm.ChatModel) -> None:
    provider.script({"count": 3})
    assert await ask(model) == 3 and len(provider.calls) == 1


async def test_the_model_is_shown_an_unusable_answer_and_what_is_wrong_with_it(
    provider: Provider, model: llm.ChatModel
) -> None:
    provider.script({"count": "many"}, {"count": 3})
    attempts: list[None] = []
    assert await ask(model, max_quoted_chars=8, on_attempt=lambda: attempts.append(None)) == 3
    assert len(attempts) == 2
    *question, shown, complaint = provider.last["messages"]
    assert question == QUESTION and shown == {"role": "assistant", "content": '{"count"'}
    assert complaint["content"] == "Repair: `count` must be a number. Answer with the JSON object alone."


@pytest.mark.parametrize(
    ("answers", "error"),
    [(["words", {"count": "many"}], UnusableAnswer), ([{"count": "many"}, "words"], llm.BadOutput)],
)
async def test_after_the_last_repair_the_last_failure_is_raised(
    provider: Provider, model: llm.ChatModel, answers: list[Any], error: type[Exception]
) -> None:
    provider.script(*answers, {"count": 3})
    with pytest.raises(error):
        await ask(model)
    assert len(provider.calls) == 2


async def test_without_an_answer_there_is_no_repair(provider: Provider, model: llm.ChatModel) -> None:
    provider.script(Fail(401), {"count": 3})
    with pytest.raises(llm.ModelRejected):
        await ask(model)
    assert len(provider.calls) == 1
