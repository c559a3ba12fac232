"""The agent loop: the model answers, its tool calls run concurrently, and it answers again until it calls no more
tools.

It works on LangChain's messages and tools, so any LangChain tool can join an assistant. A model's calls are untrusted:
if a tool does not exist, its arguments do not fit or it fails, the loop tells the model so in words and continues until
there is an answer or a limit is reached.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import structlog
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from adiuva import llm
from adiuva.llm.base import CHAT_TEMPERATURE
from adiuva.llm.context_window import request_size
from adiuva.llm.metering import current_meter
from chat.langchain_messages import answer_message, to_wire
from chat.tool_calls import Assistant, run_tool_calls
from chat.turn_context import LimitReached, TurnContext

# The most attempts at a call that is refused as too long, each shorter than the one before.
_MAX_FITS: Final = 3
# An answer that repeats one passage over and over is ended: a passage of up to 60 characters after ten repetitions, one
# of up to 200 after six, one of up to 2,000 after four. The shortest is caught soonest: a slow model would go on for
# minutes.
_SHORT_REPETITION_CHARS: Final = 600
_REPETITION_CHARS: Final = 1_200
_LONG_REPETITION_CHARS: Final = 8_000
_LONG_TIMES: Final = 4
_LONG_PASSAGE_ENDING: Final = 100
_PASSAGE_ENDING: Final = 8
_LEAST_PASSAGE: Final = 8
_LEAST_LETTERS: Final = 8
_REPETITION_CHECK_CHARS: Final = 300
_THOUGHT: Final = re.compile(r"\A\s*<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
_UNOPENED_THOUGHT: Final = re.compile(r"\A(?:(?!<think(?:ing)?>).)*</think(?:ing)?>", re.DOTALL)
# Sent in the user's name: some providers refuse a system message in last place.
_GO_ON: Final = (
    "[From the app, not from the user: your answer was cut off at the length limit. Go on exactly where it stopped, "
    "without repeating anything, and bring it to a short end.]"
)
_NOTHING_SHOWN: Final = (
    "[From the app, not from the user: nothing of your answer could be shown or carried out. A tool call that is "
    "written as text is not made: call the tool, or answer in words.]"
)


_CONCLUDE: Final = (
    "[From the app, not from the user: the limit of this request is reached, and no more tools can be called. Answer "
    "the user now with what you have, in a few sentences, and say what is still to be done.]"
)
# At these limits the model may still give a last answer.
_LIMITS_WITH_ANSWER: Final = frozenset(
    {"too_many_model_calls", "same_call_fails", "deadline", "budget_spent", "work_budget_spent"}
)

log = structlog.get_logger(__name__)


def without_thoughts(text: str) -> str:
    """Return an answer without a reasoning model's thoughts before it; some templates send only the closing tag."""
    return _UNOPENED_THOUGHT.sub("", _THOUGHT.sub("", text))


def _has_visible_text(text: str) -> bool:
    return bool(without_thoughts(text).strip())


async def _nothing() -> list[str]:
    return []


@dataclass
class OutputHooks:
    """Callbacks for an assistant's text.

    `on_text` gets it as it streams. `on_answer_end` gets the whole text of each answer of the model and returns whether
    the user sees any of it. `take_steers` returns the user's messages meanwhile, and `take_notes` other news, in words
    of ours.
    """

    on_text: Callable[[str], None] = lambda text: None
    on_answer_end: Callable[[str], bool] = _has_visible_text
    take_steers: Callable[[], Awaitable[list[str]]] = _nothing
    take_notes: Callable[[], Awaitable[list[str]]] = _nothing


async def answer_request(
    assistant: Assistant, messages: list[BaseMessage], context: TurnContext, hooks: OutputHooks
) -> None:
    """Run the loop to its answer. At a limit, ask the model once more, without tools, for an answer from what it has.

    Raises LimitReached even if that answer came, and whatever `run_agent_loop` raises.
    """
    try:
        await run_agent_loop(assistant, messages, context, hooks)
    except LimitReached as limit:
        if limit.code in _LIMITS_WITH_ANSWER:
            await _conclude(assistant, messages, context, hooks)
        raise


async def _conclude(
    assistant: Assistant, messages: Sequence[BaseMessage], context: TurnContext, hooks: OutputHooks
) -> None:
    """Ask for the last answer. If none comes, the turn ends without it, with the limit's code."""
    if (meter := current_meter()) is not None:
        meter.is_last = True  # it may spend the money that was kept for it
    context.model_calls += 1
    try:
        answer, _ = await _stream_answer(
            assistant.without_tools, [*messages, HumanMessage(_CONCLUDE)], context, hooks, is_counted=False
        )
    except (llm.ModelError, LimitReached) as error:
        if isinstance(error, llm.BudgetSpent):
            context.model_calls -= 1  # the call was not made
        log.info("turn.no_last_answer", code=error.code)
    else:
        hooks.on_answer_end(str(answer.content))


async def run_agent_loop(
    assistant: Assistant, messages: list[BaseMessage], context: TurnContext, hooks: OutputHooks
) -> str:
    """Return the last answer's text, after appending to `messages`. Raises LimitReached or a ModelError."""
    while True:
        answer = await _ask_model(assistant, messages, context, hooks)
        messages.append(answer)
        try:
            async with asyncio.timeout_at(context.conclude_at) as until:
                results = await run_tool_calls(assistant, answer, context)
        except TimeoutError:
            if not until.expired():
                raise
            raise LimitReached("deadline") from None
        messages += results
        said = [*await hooks.take_notes(), *await hooks.take_steers()]
        messages += [HumanMessage(text) for text in said]
        if not results and not said:
            return str(answer.content)


async def _ask_model(
    assistant: Assistant, messages: Sequence[BaseMessage], context: TurnContext, hooks: OutputHooks
) -> AIMessage:
    """Return the model's answer. If one is cut off, refused or shows the user nothing, ask once more.

    Raises LimitReached, or ModelEmpty if the second is no better.
    """
    conversation, shown = list(messages), ""
    for is_last_try in (False, True):
        answer, reason = await _stream_fitting_answer(assistant, conversation, context, hooks)
        text = str(answer.content)
        has_calls = bool(answer.tool_calls or answer.invalid_tool_calls)
        if reason == "length" and not has_calls and _has_visible_text(text):
            if is_last_try:
                hooks.on_answer_end(text)
                raise LimitReached("answer_cut_off")
            # The user has read the text so far, so ask only for the rest.
            conversation += [answer, HumanMessage(_GO_ON)]
            shown = text
            continue
        is_visible = hooks.on_answer_end(text) or bool(shown)
        if has_calls or (is_visible and reason != "content_filter"):
            answer.content = shown + text
            return answer
        if is_last_try:
            raise LimitReached("content_filter") if reason == "content_filter" else llm.ModelEmpty
        if reason != "content_filter" and _has_visible_text(text):
            conversation += [answer, HumanMessage(_NOTHING_SHOWN)]
    raise AssertionError


async def _stream_fitting_answer(
    assistant: Assistant, messages: Sequence[BaseMessage], context: TurnContext, hooks: OutputHooks
) -> tuple[AIMessage, str]:
    """Return what _stream_answer does. A call refused as too long is shortened and repeated: its refusal tells the
    window.

    Raises ModelContextExceeded if that does not help.
    """
    for tries_left in reversed(range(_MAX_FITS)):
        try:
            return await _stream_answer(assistant, messages, context, hooks)
        except llm.ModelContextExceeded:
            if not tries_left:
                raise
        except llm.BudgetSpent as spent:
            context.model_calls -= 1  # the call was not made
            raise LimitReached(spent.code) from None
    raise AssertionError


async def _stream_answer(
    assistant: Assistant,
    messages: Sequence[BaseMessage],
    context: TurnContext,
    hooks: OutputHooks,
    *,
    is_counted: bool = True,
) -> tuple[AIMessage, str]:
    """Stream one answer of the model; return it and the reason why it ended."""
    if is_counted:
        context.count_model_call()
    texts: list[str] = []
    calls: list[llm.ToolCall] = []
    ended_by, unchecked, tail, looked_through = "", 0, "", 0

    def take(text: str) -> None:
        nonlocal unchecked, tail, looked_through
        texts.append(text)
        hooks.on_text(text)
        unchecked += len(text)
        if unchecked >= _REPETITION_CHECK_CHARS:
            tail = (tail + "".join(texts[looked_through:]))[-_LONG_REPETITION_CHARS:]
            unchecked, looked_through = 0, len(texts)
            if _repeats(tail):
                raise LimitReached("answer_repeats")

    # Close the source at once, even if `take` raises, so that the request to the model ends.
    async with aclosing(_stream(assistant, messages, context, take)) as source:
        async for deltas in source:
            for delta in deltas:
                match delta:
                    case llm.Text(text):
                        take(text)
                    case llm.ToolCall():
                        calls.append(delta)
                    case llm.Finish(reason):
                        context.note_answer(delta)
                        ended_by = reason
    if ended_by == "content_filter":
        calls.clear()  # calls that a filter has cut off must not be carried out
    return answer_message("".join(texts), calls, is_cut_off=ended_by == "length"), ended_by


def _stream(
    assistant: Assistant,
    messages: Sequence[BaseMessage],
    context: TurnContext,
    on_text: Callable[[str], None],
) -> AsyncGenerator[list[llm.Delta], None]:
    budget = context.budget
    fitted = budget.fit(messages, assistant.schemas, _size_of)
    return context.model.stream(
        to_wire(fitted.messages),
        tools=fitted.tools,
        max_tokens=budget.answer_tokens,
        temperature=CHAT_TEMPERATURE,
        size=fitted.size,
        on_text=on_text,
    )


def _size_of(messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]]) -> int:
    return request_size(to_wire(messages), tools)


def _repeats(text: str) -> bool:
    """Return whether a text ends in one passage over and over. Table rules and blanks do not count as passages."""
    return (
        _ends_in_repetition(text, _REPETITION_CHARS, 6)
        or _ends_in_repetition(text, _SHORT_REPETITION_CHARS, 10)
        or _ends_in_long_repetition(text[-_LONG_REPETITION_CHARS:])
    )


def _ends_in_repetition(text: str, chars: int, times: int) -> bool:
    """Return whether a text ends in `times` repetitions within its last `chars` characters.

    The distance from the ending to its previous occurrence is the length of the passage.
    """
    tail = text[-chars:]
    if len(tail) < chars:
        return False
    ending, place = tail[-_PASSAGE_ENDING:], chars - _PASSAGE_ENDING
    first = place - chars // times
    while (place := tail.rfind(ending, first, place + _PASSAGE_ENDING - 1)) >= 0:
        size = chars - _PASSAGE_ENDING - place
        if size >= _LEAST_PASSAGE and tail[size:] == tail[:-size]:
            return len(set(tail)) >= _LEAST_LETTERS
    return False


def _ends_in_long_repetition(text: str) -> bool:
    """Return the same for passages of 200 characters or more."""
    ending = text[-_LONG_PASSAGE_ENDING:]
    place = len(text) - _LONG_PASSAGE_ENDING
    while (place := text.rfind(ending, 0, place + _LONG_PASSAGE_ENDING - 1)) >= 0:
        size = len(text) - _LONG_PASSAGE_ENDING - place
        if size * _LONG_TIMES > len(text):
            return False
        tail = text[-size * _LONG_TIMES :]
        if (
            size >= _REPETITION_CHARS // 6
            and tail[size:] == tail[:-size]
            and len(set(tail)) >= _LEAST_LETTERS
        ):
            return True
    return False
