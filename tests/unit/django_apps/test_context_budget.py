"""Trimming of a model call to the context window, and the sizes of windows and requests."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from adiuva.llm.context_window import ContextWindow, listed_window, window_in_models, window_in_props
from adiuva.llm.learnt import LearntFacts
from chat.context_budget import REQUEST, ContextBudget, LeftOut
from chat.langchain_messages import to_wire

TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d" * 200, "parameters": {}}}
    for name in ("ask_specialist", "list_tasks", "create_task", "list_notes", "get_note", "delete", "recall")
]
WORDS = "what do I have to do?"


def size_of(messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]]) -> int:
    return len(orjson.dumps(to_wire(messages))) + len(orjson.dumps(tools))


def budget(tokens: int) -> ContextBudget:
    window = ContextWindow(LearntFacts("http://here", "a model"))
    window._told = tokens
    return ContextBudget(SimpleNamespace(window=window))


def turn(history: Sequence[str], results: Sequence[str], *, request: str = WORDS) -> list[BaseMessage]:
    """A system message, pairs of what was said before, the request, and a call with a result for each of `results`."""
    messages: list[BaseMessage] = [SystemMessage("You help.")]
    for text in history:
        messages += [HumanMessage(f"question {text}"), AIMessage(f"answer {text}")]
    messages.append(HumanMessage(request, additional_kwargs={REQUEST: True}))
    for number, result in enumerate(results):
        call = {"type": "tool_call", "id": f"c{number}", "name": "list_tasks", "args": {}}
        messages += [AIMessage("", tool_calls=[call]), ToolMessage(result, tool_call_id=f"c{number}")]
    return messages


_TEXTS = st.lists(
    st.text(alphabet=string.ascii_letters + "\n é漢", max_size=30).map(lambda t: t * 60), max_size=4
)


@given(_TEXTS, _TEXTS, st.integers(600, 9_000))
def test_it_fits_and_keeps_what_it_must(history: list[str], results: list[str], tokens: int) -> None:
    messages, room = turn(history, results), budget(tokens)
    before = orjson.dumps(to_wire(messages))
    fitting, tools, _ = room.fit(messages, TOOLS, size_of)
    assert orjson.dumps(to_wire(messages)) == before  # the turn's own are not touched
    assert size_of(fitting, tools) <= (room.request_bytes or 0) or tokens < 3_000
    assert fitting[0] == messages[0]
    assert [one for one in fitting if str(one.content).endswith(WORDS)]
    roles = [one["role"] for one in to_wire(fitting)]
    assert roles[:2] == ["system", "user"] and roles.count("tool") == len(results)
    said = roles[1 : roles.index("assistant") if results and "assistant" in roles else len(roles)]
    assert "assistant" not in said or said[::2] == ["user"] * len(said[::2])
    called = {call["id"] for one in fitting if isinstance(one, AIMessage) for call in one.tool_calls}
    assert called == {f"c{number}" for number in range(len(results))}
    assert not results or "list_tasks" in {tool["function"]["name"] for tool in tools}
    assert bool(room.left_out) == (fitting is not messages)
    again, same_tools, size = room.fit(fitting, tools, size_of)
    assert size == size_of(again, same_tools)
    assert size_of(again, same_tools) <= size_of(fitting, tools)


def test_an_unknown_window_bounds_nothing() -> None:
    messages = turn(["x" * 100_000], ["y" * 100_000])
    assert budget(0).fit(messages, TOOLS, size_of) == (messages, TOOLS, None)
    assert budget(0).notice() == ""


def test_what_is_needed_least_goes_first() -> None:
    messages = turn(["a" * 500, "b" * 500], ["c" * 3_000, "d" * 1_000])
    rooms = [budget(tokens) for tokens in (3_000, 2_800, 2_100, 1_300)]
    found = [room.fit(messages, TOOLS, size_of) for room in rooms]
    assert [room.left_out for room in rooms] == [
        {LeftOut.RESULTS},
        {LeftOut.RESULTS, LeftOut.TOOLS},
        {LeftOut.RESULTS, LeftOut.TOOLS, LeftOut.MESSAGES},
        {LeftOut.RESULTS, LeftOut.TOOLS, LeftOut.MESSAGES},
    ]
    assert all("d" * 300 in str(fitting[-1].content) for fitting, *_ in found)
    assert {tool["function"]["name"] for tool in found[-1][1]} == {
        "list_tasks", "create_task", "list_notes", "get_note",
    }  # fmt: skip
    assert "earlier messages did not fit" in str(found[-1][0][1].content)
    assert ["not all tools fitted" in str(fitting) for fitting, *_ in found] == [False, True, True, True]
    assert "earlier messages and parts of what was read were left out" in rooms[-1].notice()


def test_a_request_of_many_rows_keeps_the_users_words() -> None:
    messages = turn([], [], request="row\n" * 5_000 + WORDS)
    [_, request], *_ = budget(1_500).fit(messages, [], size_of)
    assert str(request.content).endswith(WORDS) and "characters did not fit" in str(request.content)


# ── How large a window is ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "window"),
    [
        ({"data": [{"id": "other", "max_model_len": 9_999}, {"id": "m", "max_model_len": 8_192}]}, 8_192),
        ({"data": [{"id": "m", "context_length": 131_072}]}, 131_072),
        ({"data": [{"id": "/models/m.gguf", "meta": {"n_ctx": 4_096, "n_ctx_train": 32_768}}]}, 4_096),
        ({"data": [{"id": "m", "max_context_length": 32_768, "loaded_context_length": 4_096}]}, 4_096),
        ({"data": [{"id": "a"}, {"id": "b", "max_model_len": 8_192}]}, 0),
        ({"data": [{"id": "m", "max_model_len": "8192"}]}, 0),
        ({"data": [{"id": "m", "max_model_len": True, "context_window": 3}]}, 0),
        *[(answer, 0) for answer in (None, [], {"data": None}, {"data": [1, None]}, {"data": [{"meta": 4}]})],
    ],
)
def test_a_list_of_models_tells_it(answer: Any, window: int) -> None:
    assert window_in_models(answer, "m") == window


def test_llama_cpp_and_litellms_list_tell_it() -> None:
    assert window_in_props({"default_generation_settings": {"n_ctx": 4_096}}) == 4_096
    assert [window_in_props(answer) for answer in (None, [], {}, {"default_generation_settings": 4})] == [
        0
    ] * 4
    assert listed_window("openai/gpt-4o-mini") == 128_000 and listed_window("openai/nobody's") == 0


def test_bytes_of_a_token_are_learnt_from_usage() -> None:
    window = ContextWindow(LearntFacts("http://here", "m"))
    assert window.tokens_of(3_000) == 1_001
    for _ in range(30):
        window.note_usage(4_000, 1_000)
        window.note_usage(100, 10)  # too short to tell
    assert 750 <= window.tokens_of(3_000) <= 760 and 3_970 <= window.bytes_of(1_000) <= 4_000
    for _ in range(99):
        window.note_usage(1_000_000, 1_000)  # a server that counts only what it had not cached
    assert window.bytes_of(1_000) <= 6_000
