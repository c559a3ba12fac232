"""Answers that go in circles are ended, and thoughts are told from answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from adiuva import llm
from adiuva.llm.context_window import ContextWindow
from adiuva.llm.learnt import LearntFacts
from chat.agent_loop import OutputHooks, _ends_in_repetition, _repeats, run_agent_loop, without_thoughts
from chat.tool_calls import Assistant
from chat.turn_context import LimitReached, TurnContext


class _Model:
    """Calls the same missing tool for ever."""

    window = ContextWindow(LearntFacts("http://here", "scripted"))

    async def stream(self, messages: Any, **_: Any) -> Any:
        yield [llm.ToolCall("c1", "no_such_tool", '{"a": 1}'), llm.Finish("tool_calls", llm.Usage(1, 1, 0))]


async def test_the_same_failing_call_ends_the_turn() -> None:
    assistant = Assistant("home", [])
    context = TurnContext(_Model(), max_model_calls=16)  # type: ignore[arg-type]
    with pytest.raises(LimitReached) as limit:
        await run_agent_loop(assistant, [AIMessage("")], context, OutputHooks())
    assert (limit.value.code, context.model_calls) == ("same_call_fails", 3)


@given(
    st.text("abcdefghij .", max_size=30),
    st.text("abcdefghij .", min_size=1, max_size=220),
    st.integers(1, 130),
    st.integers(0, 200),
    st.sampled_from([(1_200, 6), (600, 10)]),
)
def test_a_passage_is_found_as_if_all_lengths_were_tried(
    before: str, passage: str, count: int, left_out: int, form: tuple[int, int]
) -> None:
    chars, times = form
    text = (before + passage * count)[: -left_out or None]
    tail = text[-chars:]
    found = len(tail) == chars and len(set(tail)) >= 8
    found = found and any(tail[size:] == tail[:-size] for size in range(8, chars // times + 1))
    assert _ends_in_repetition(text, chars, times) == found


def test_a_text_that_repeats_itself_is_told_from_one_that_does_not() -> None:
    assert _repeats(("I will look into the tasks of the user. " * 100)[-1_200:])
    assert _repeats("Hello. " + "The user's name is: Mara Lindt\n" * 20)
    passage = "".join(f"Step {n}: I look at the task {n * 7} of the user.\n" for n in range(9))
    assert 200 < len(passage) < 500
    assert _repeats("Hello. " + passage * 4) and _repeats(passage * 4 + passage[:57])
    assert not _repeats(passage * 3) and not _repeats(passage * 4 + "Done.")
    long = "".join(f"Step {n}: I look at the task {n * 7} of the user.\n" for n in range(45))
    assert 1_600 < len(long) < 2_000 and _repeats(long * 4 + long[:999]) and not _repeats(long * 3)
    assert not _repeats("".join(f"{n}. {passage}" for n in range(20)))
    assert not _repeats("The user's name is: Mara Lindt\n" * 15)
    assert not _repeats("".join(f"{n}. The user's name is: Mara Lindt\n" for n in range(30)))
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
