"""Capabilities and window of a model's endpoint: learnt once, for all processes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pytest_django import Settings
from structlog.testing import capture_logs

from adiuva import llm
from adiuva.core.redis import sync_redis
from adiuva.llm import learnt
from adiuva.llm.context_window import ContextWindow
from adiuva.llm.learnt import LearntFacts
from tests.fakes.provider import Call, Fail, Provider, Raw, Request, Say
from tests.llm.learnt import forget_all
from tests.llm.test_llm import ASK, TOOLS, everything, provider, text_of

__all__ = ["provider"]


@pytest.fixture
async def model(provider: Provider) -> AsyncIterator[llm.ChatModel]:
    yield llm.chat_model(provider.settings("learner"))
    await llm.aclose()


@pytest.fixture
async def facts() -> AsyncIterator[LearntFacts]:
    forget_all()
    yield LearntFacts("http://here", "m")
    await llm.aclose()


def finish_of(deltas: list[llm.Delta]) -> llm.Finish:
    assert isinstance(deltas[-1], llm.Finish)
    return deltas[-1]


# ── Tools ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "refusal",
    [
        Fail(400, message="registry.ollama.ai/library/gemma3:1b does not support tools"),
        Fail(400, message='"auto" tool choice requires --enable-auto-tool-choice'),
        Fail(422, message="Ungültige Anfrage"),
        Fail(404, message="No endpoints found that support tool use."),
        Fail(500, message="tools param requires --jinja flag"),
    ],
    ids=["Ollama", "vLLM", "unnamed", "OpenRouter", "llama.cpp"],
)
async def test_an_endpoint_that_takes_no_tools_answers_without_them_and_says_so(
    provider: Provider, model: llm.ChatModel, refusal: Fail
) -> None:
    provider.default = lambda request: refusal if request.body.get("tools") else "I cannot look."
    deltas = await everything(model, tools=TOOLS, max_tokens=9)
    assert text_of(deltas) == "I cannot look." and finish_of(deltas).lacks_tools
    assert "you have no tools here" in provider.last["messages"][-1]["content"]
    for _ in range(4):  # what was left out with them comes back
        assert finish_of(await everything(model, tools=TOOLS, max_tokens=9)).lacks_tools
    before = len(provider.calls)
    await everything(model, tools=TOOLS, max_tokens=9)
    assert len(provider.calls) == before + 1 and provider.last["max_tokens"] == 9
    assert not finish_of(await everything(model)).lacks_tools  # nothing was missing


async def test_tools_that_were_taken_before_are_not_the_reason_of_a_refusal(
    provider: Provider, model: llm.ChatModel
) -> None:
    provider.script(Call("list_tasks"), Fail(400, message="a tool message must follow a tool call"))
    await everything(model, tools=TOOLS)
    with pytest.raises(llm.ModelRejected):
        await everything(model, tools=TOOLS)
    assert provider.last["tools"] == TOOLS
    assert not finish_of(await everything(model, tools=TOOLS)).lacks_tools


async def test_calls_of_a_model_that_could_are_told_in_words_to_one_that_cannot(
    provider: Provider, model: llm.ChatModel
) -> None:
    call = llm.ToolCall("c1", "list_tasks", "{}").wire()
    messages: list[llm.Message] = [
        *ASK,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "Three tasks."},
    ]
    provider.default = lambda request: Fail(400, message="no tools") if request.body.get("tools") else "ok"
    [_ async for _ in model.stream(messages, tools=TOOLS)]
    assert [(one["role"], set(one)) for one in provider.last["messages"]] == [
        ("user", {"role", "content"}),
        ("assistant", {"role", "content"}),
        ("user", {"role", "content"}),
    ]
    assert "Three tasks." in provider.last["messages"][-1]["content"]
    await model.complete(messages)  # nor in a request that offers none
    assert [one["role"] for one in provider.last["messages"]] == ["user", "assistant", "user"]


# ── Thoughts without a beginning ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def thinker(provider: Provider) -> Say:
    pieces = ["Hm, the user wants", " a yes.</thi", "nk>\n\nYes."]
    return Say("".join(pieces), pieces=pieces)


async def test_an_unopened_thought_is_never_shown_and_the_contrary_is_learnt(
    provider: Provider, model: llm.ChatModel, thinker: Say
) -> None:
    provider.default = thinker
    assert text_of(await everything(model)) == "Yes."  # nor the first
    assert text_of(await everything(model)) == "Yes."
    provider.default = Say("Hm, the user", finish="length")
    assert text_of(await everything(model)) == ""
    provider.default = "No thoughts."
    assert text_of(await everything(model)) == "No thoughts."
    assert _streams_at_once(await _lists(model))


async def test_one_whole_answer_tells_enough_for_the_next_to_stream(
    provider: Provider, model: llm.ChatModel, thinker: Say
) -> None:
    provider.script(Say("Hm, the user", finish="length"), "No thoughts.")
    await model.complete(ASK)
    assert model._thoughts.is_expected  # type: ignore[attr-defined]  # it may have been one
    await model.complete(ASK)
    assert _streams_at_once(await _lists(model))
    provider.script(thinker)
    await model.complete(ASK)
    provider.default = thinker
    assert text_of(await everything(model)) == "Yes."


async def _lists(model: llm.ChatModel) -> list[list[llm.Delta]]:
    return [deltas async for deltas in model.stream(ASK)]


def _streams_at_once(lists: list[list[llm.Delta]]) -> bool:
    return not any(isinstance(delta, llm.Finish) for delta in lists[0])


# ── For all processes ───────────────────────────────────────────────────────────────────────────────────


def _refuse(request: Request) -> Any:
    if "temperature" in request.body:
        return Fail(422, message="temperature")
    error = {"code": 400, "message": "the request exceeds the available context size", "n_ctx": 4_096}
    return (
        "ok"
        if len(request.body["messages"][0]["content"]) < 99
        else Raw(json.dumps({"error": error}).encode(), 400)
    )


async def test_another_process_knows_it_before_its_first_request(
    provider: Provider, model: llm.ChatModel
) -> None:
    provider.default = _refuse
    with pytest.raises(llm.ModelContextExceeded):
        await model.complete([{"role": "user", "content": "x" * 999}], temperature=0.5)
    await model.complete(ASK, temperature=0.5)
    learnt.forget()  # as a process that has just begun
    asked = len(provider.calls)
    assert await model.find_window() == 4_096
    await model.complete(ASK, temperature=0.5)
    assert len(provider.calls) == asked + 1 and "temperature" not in provider.last
    [key] = sync_redis("heartbeat").scan_iter("adiuva:model_learnt:*")
    assert 0 < sync_redis("heartbeat").ttl(key) <= 24 * 3600
    await llm.forget_learnt(model)
    await model.complete(ASK, temperature=0.5)
    assert provider.calls[asked + 1].body["temperature"] == 0.5  # tried anew


async def test_what_several_learn_is_added_up_and_read_once_a_minute(facts: LearntFacts) -> None:
    other = LearntFacts("http://here", "m")
    await facts.read()
    await other.note({"temperature": "refused"})
    await facts.note({"tools": "taken"})
    await facts.read()
    assert facts.get("temperature") == ""
    facts._read_at = 0.0
    await facts.read()
    assert (facts.get("temperature"), facts.get("tools")) == ("refused", "taken")


async def test_without_redis_each_process_knows_what_it_has_seen(
    provider: Provider, model: llm.ChatModel, settings: Settings
) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    provider.default = _refuse
    with capture_logs() as logs:
        for _ in range(3):
            learnt._facts[model.endpoint, model.name]._read_at = 0.0
            assert (await model.complete(ASK, temperature=0.5)).text == "ok"
    assert [call.body.get("temperature") for call in provider.calls] == [0.5, None, None, None]
    assert [one["event"] for one in logs].count("model.learnt_not_shared") == 1


async def test_a_window_is_asked_for_once_and_learnt_from_refusals(
    facts: LearntFacts, settings: Settings
) -> None:
    window, asked = ContextWindow(facts), []

    async def ask() -> int:
        asked.append(1)
        return 0

    assert [await window.find(ask), await window.find(ask)] == [0, 0] and len(asked) == 1
    await window.note_refusal(30_000, 0)  # it does not say how much, so less than that is tried
    assert window.tokens == 7_000
    await window.note_refusal(30_000, 4_096)
    assert await window.find(ask) == 4_096 and len(asked) == 1
    await window.note_refusal(9_000, 4_096)  # the same again: the estimate was wrong
    assert window.tokens < 3_000
    settings.MODEL_CONTEXT_WINDOW = 2_000
    assert window.tokens == 2_000
