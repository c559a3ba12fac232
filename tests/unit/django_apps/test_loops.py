"""Answers that go in circles are ended, and thoughts are told from answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from adiuva import llm
from chat.agent_loop import (
    Assistant,
    LimitReached,
    OutputHooks,
    TurnContext,
    _repeats,
    run_agent_loop,
    without_thoughts,
)


class _Model:
    """Calls the same missing tool for ever."""

    async def stream(self, messages: Any, **_: Any) -> Any:
        yield [llm.ToolCall("c1", "no_such_tool", '{"a": 1}'), llm.Finish("tool_calls", llm.Usage(1, 1, 0))]


async def test_the_same_failing_call_ends_the_turn() -> None:
    assistant = Assistant(SimpleNamespace(text="", canary=""), [])  # type: ignore[arg-type]
    context = TurnContext(_Model(), max_model_calls=16)  # type: ignore[arg-type]
    with pytest.raises(LimitReached) as limit:
        await run_agent_loop(assistant, [AIMessage("")], context, OutputHooks())
    assert (limit.value.code, context.model_calls) == ("same_call_fails", 3)


def test_a_text_that_repeats_itself_is_told_from_one_that_does_not() -> None:
    assert _repeats(("I will look into the tasks of the user. " * 100)[-1_200:])
    assert not _repeats("-" * 1_200) and not _repeats("| a | b |\n" * 10)
    assert not _repeats("".join(f"- Task {n}: call person {n * 7}\n" for n in range(80))[-1_200:])


@pytest.mark.parametrize(
    "text",
    [
        "<think>hm</think>Yes.",
        "Let me see.\nThe user wants it.</think>Yes.",
        "<thinking>a</thinking>Yes.",
        "Yes.",
    ],
)
def test_thoughts_are_left_out_also_without_an_opening_tag(text: str) -> None:
    assert without_thoughts(text) == "Yes."
