"""The agent loop: the model answers, its tool calls run concurrently, it answers again, until it calls no more tools.

It works on LangChain's messages and tools, so any LangChain tool can join an assistant. What a model asks for is
untrusted: if a tool does not exist, its arguments do not fit or it fails, the model is told so in words, and the loop
continues until there is an answer or a limit is reached.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import BaseTool, ToolException
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, ValidationError

from adiuva import llm
from adiuva.core.logging import log_failure
from adiuva.llm.base import CHAT_TEMPERATURE, MAX_CHAT_TOKENS
from chat.prompts import SystemPrompt

# How long a cancelled turn waits for a write that is under way, so that it knows what happened.
_WRITE_GRACE_S: Final = 2.0
_MAX_CALLS_PER_ANSWER: Final = 64
_MAX_SAME_FAILURES: Final = 3
# An answer whose last so many characters are one passage over and over is ended.
_REPETITION_CHARS: Final = 1_200
_WRITES: Final = frozenset({"insert", "update", "delete"})
_THOUGHT: Final = re.compile(r"\A\s*<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
_UNOPENED_THOUGHT: Final = re.compile(r"\A(?:(?!<think(?:ing)?>).)*</think(?:ing)?>", re.DOTALL)
# These are sent as the user's: some providers refuse a system message that comes last.
_GO_ON: Final = (
    "[From the app, not from the user: your answer was cut off at the length limit. Go on exactly where it stopped, "
    "without repeating anything, and bring it to a short end.]"
)
_NOTHING_SHOWN: Final = (
    "[From the app, not from the user: nothing of your answer could be shown or carried out. A tool call that is "
    "written as text is not made: call the tool, or answer in words.]"
)


class LimitReached(Exception):
    """The turn reached one of its limits; `code` says which."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Assistant:
    """A prompt and its tools, built once."""

    def __init__(
        self, prompt: SystemPrompt, tools: Sequence[BaseTool], unlisted: Sequence[BaseTool] = ()
    ) -> None:
        """`unlisted`: tools that the model is not told of and whose calls are carried out all the same."""
        self.prompt = prompt
        self.tools = {tool.name: tool for tool in (*tools, *unlisted)}
        self._listed = ", ".join(tool.name for tool in tools)
        self.schemas: list[dict[str, Any]] = [_tool_schema(tool) for tool in tools]
        # Built once because LangChain builds them again at each access.
        self._checks = {tool.name: tool.tool_call_schema for tool in (*tools, *unlisted)}
        self._arguments = {
            schema["function"]["name"]: schema["function"].get("parameters", {}).get("properties", {})
            for schema in [*self.schemas, *map(_tool_schema, unlisted)]
        }

    def call_problem(self, name: str, arguments: dict[str, Any]) -> str:
        """Why a call cannot be carried out, in words for the model; "" if it can."""
        if name not in self.tools:
            return f"there is no such tool; there are {self._listed}"
        # LangChain would drop an unknown argument, and the model would believe that it had an effect.
        if unknown := arguments.keys() - self._arguments[name].keys():
            known = ", ".join(self._arguments[name]) or "none"
            return f"there is no argument {', '.join(sorted(unknown))}; there are {known}"
        check = self._checks[name]
        if isinstance(check, type) and issubclass(
            check, BaseModel
        ):  # else a JSON Schema, which the tool checks
            try:
                check.model_validate(arguments)
            except ValidationError as error:
                return _validation_text(error)
        return ""


def _tool_schema(tool: BaseTool) -> dict[str, Any]:
    """What a model reads of a tool, without null defaults: they cost tokens, and some chat templates break on them."""
    schema = convert_to_openai_tool(tool)
    for argument in schema["function"].get("parameters", {}).get("properties", {}).values():
        if argument.get("default", ...) is None:
            del argument["default"]
    return schema


@dataclass
class ToolInvocation:
    """A tool call that can be carried out. `arguments` are as the model gave them."""

    id: str
    tool: BaseTool
    arguments: dict[str, Any]

    @property
    def action(self) -> str:
        return str((self.tool.metadata or {}).get("action", ""))

    @property
    def table(self) -> str:
        return str((self.tool.metadata or {}).get("table", ""))

    @property
    def label(self) -> str:
        """What the user is shown while it runs."""
        return str((self.tool.metadata or {}).get("label", ""))

    @property
    def row_argument(self) -> str:
        """The argument that names the row that the call is about."""
        return str((self.tool.metadata or {}).get("key", "id"))


async def _allow_all(calls: Sequence[ToolInvocation]) -> dict[str, str]:
    return {}


@dataclass
class TurnContext:
    """What all model calls of a turn share, those of its sub-agents included.

    `tool_config`: what tools find in their config.
    `authorize`: called before tools run; returns by call id why a call may not run.
    `on_tool_start`: called for each call that runs.
    `resolve`: the tool and the arguments that a call means, with ids for aliases. Raises ToolException.
    `failed_calls`: how often the same call has failed.
    `usage`, `model_calls`, `tool_calls`: counted so far.
    """

    model: llm.ChatModel
    max_model_calls: int
    tool_config: dict[str, Any] = field(default_factory=dict)
    authorize: Callable[[Sequence[ToolInvocation]], Awaitable[dict[str, str]]] = _allow_all
    on_tool_start: Callable[[ToolInvocation], None] = lambda call: None
    resolve: Callable[[str, dict[str, Any]], tuple[str, dict[str, Any]]] = lambda name, arguments: (
        name,
        arguments,
    )
    failed_calls: Counter[str] = field(default_factory=Counter)
    usage: llm.Usage = field(default_factory=llm.Usage)
    model_calls: int = 0
    tool_calls: int = 0

    def count_model_call(self) -> None:
        if self.model_calls >= self.max_model_calls:
            raise LimitReached("too_many_model_calls")
        self.model_calls += 1


def without_thoughts(text: str) -> str:
    """An answer without what a reasoning model thought before; some templates send only the closing tag."""
    return _UNOPENED_THOUGHT.sub("", _THOUGHT.sub("", text))


def _has_visible_text(text: str) -> bool:
    return bool(without_thoughts(text).strip())


@dataclass
class OutputHooks:
    """What the loop does with an assistant's text.

    `on_text` gets it as it streams; `on_answer_end` is called after each answer of the model, with all of its text, and
    returns whether the user sees any of it; `take_steers` returns what the user has said meanwhile.
    """

    on_text: Callable[[str], None] = lambda text: None
    on_answer_end: Callable[[str], bool] = _has_visible_text
    take_steers: Callable[[], list[str]] = list


async def run_agent_loop(
    assistant: Assistant, messages: list[BaseMessage], context: TurnContext, hooks: OutputHooks
) -> str:
    """Returns the last answer's text; appends to `messages`. Raises LimitReached or a ModelError."""
    while True:
        answer = await _ask_model(assistant, messages, context, hooks)
        messages.append(answer)
        results = await _run_tool_calls(assistant, answer, context)
        messages += results
        said = hooks.take_steers()
        messages += [HumanMessage(text) for text in said]
        if not results and not said:
            return str(answer.content)


async def _ask_model(
    assistant: Assistant, messages: Sequence[BaseMessage], context: TurnContext, hooks: OutputHooks
) -> AIMessage:
    """The model's answer. One that was cut off, refused, or that shows nothing to the user is tried once more.

    Raises LimitReached or ModelEmpty if the second is no better.
    """
    asked, shown = list(messages), ""
    for is_last_try in (False, True):
        answer, reason = await _stream_answer(assistant, asked, context, hooks)
        text = str(answer.content)
        has_calls = bool(answer.tool_calls or answer.invalid_tool_calls)
        if reason == "length" and not has_calls and _has_visible_text(text):
            if is_last_try:
                hooks.on_answer_end(text)
                raise LimitReached("answer_cut_off")
            # The user has read the text so far, so the model is asked for the rest only.
            asked += [answer, HumanMessage(_GO_ON)]
            shown = text
            continue
        is_visible = hooks.on_answer_end(text) or bool(shown)
        if has_calls or (is_visible and reason != "content_filter"):
            answer.content = shown + text
            return answer
        if is_last_try:
            raise LimitReached("content_filter") if reason == "content_filter" else llm.ModelEmpty
        if reason != "content_filter" and _has_visible_text(text):
            asked += [answer, HumanMessage(_NOTHING_SHOWN)]
    raise AssertionError


async def _stream_answer(
    assistant: Assistant, messages: Sequence[BaseMessage], context: TurnContext, hooks: OutputHooks
) -> tuple[AIMessage, str]:
    """One answer of the model, and why it ended."""
    context.count_model_call()
    texts: list[str] = []
    calls: list[llm.ToolCall] = []
    ended_by, size, check_at = "", 0, _REPETITION_CHARS
    # Closed at once, also when `on_text` raises, so that the request to the model ends.
    async with aclosing(_stream(assistant, messages, context)) as source:
        async for deltas in source:
            for delta in deltas:
                match delta:
                    case llm.Text(text):
                        texts.append(text)
                        hooks.on_text(text)
                        size += len(text)
                        if size >= check_at:
                            check_at = size + _REPETITION_CHARS
                            if _repeats("".join(texts)[-_REPETITION_CHARS:]):
                                raise LimitReached("answer_repeats")
                    case llm.ToolCall():
                        calls.append(delta)
                    case llm.Finish(reason, usage):
                        context.usage += usage
                        ended_by = reason
    if ended_by == "content_filter":
        calls.clear()  # what a filter has cut must not be carried out
    return _answer_message("".join(texts), calls, is_cut_off=ended_by == "length"), ended_by


def _stream(
    assistant: Assistant, messages: Sequence[BaseMessage], context: TurnContext
) -> AsyncGenerator[list[llm.Delta], None]:
    return context.model.stream(
        to_wire(messages), tools=assistant.schemas, max_tokens=MAX_CHAT_TOKENS, temperature=CHAT_TEMPERATURE
    )


def _repeats(text: str) -> bool:
    """Whether a text is one passage over and over. Rules of tables and blanks are none."""
    if len(text) < _REPETITION_CHARS or len(set(text)) < 8:
        return False
    return any(text[size:] == text[:-size] for size in range(8, _REPETITION_CHARS // 6))


def _answer_message(text: str, calls: Sequence[llm.ToolCall], *, is_cut_off: bool) -> AIMessage:
    answer = AIMessage(text)
    seen: set[str] = set()
    for place, call in enumerate(calls):
        key = f"{call.id}_{place}" if call.id in seen else call.id  # some providers give an id twice
        seen.add(key)
        arguments = _parse_arguments(call.arguments)
        # A call that was cut off before its first argument looks like one without arguments.
        if arguments is None or (is_cut_off and call is calls[-1] and not arguments):
            answer.invalid_tool_calls.append(
                {
                    "type": "invalid_tool_call",
                    "id": key,
                    "name": call.name,
                    "args": call.arguments,
                    "error": "the call was cut off at the length limit; make it shorter"
                    if is_cut_off
                    else None,
                }
            )
        else:
            answer.tool_calls.append({"type": "tool_call", "id": key, "name": call.name, "args": arguments})
    return answer


async def _run_tool_calls(assistant: Assistant, answer: AIMessage, context: TurnContext) -> list[ToolMessage]:
    """The result of each call, in order."""
    results: dict[str | None, ToolMessage] = {
        call["id"]: _failure_message(call["id"], call["error"] or "the arguments are not a JSON object")
        for call in answer.invalid_tool_calls
    }
    ready: list[ToolInvocation] = []
    for place, wish in enumerate(answer.tool_calls):
        key, name, arguments = wish["id"], wish["name"], wish["args"]
        if place >= _MAX_CALLS_PER_ANSWER:
            results[key] = _failure_message(
                key, f"at most {_MAX_CALLS_PER_ANSWER} tools are called at once; call it again"
            )
        elif reason := assistant.call_problem(name, arguments):
            results[key] = _failure_message(key, reason)
        else:
            try:
                name, arguments = context.resolve(name, arguments)
            except ToolException as failure:
                results[key] = _failure_message(key, str(failure))
                continue
            ready.append(ToolInvocation(str(key), assistant.tools[name], arguments))
    if ready:
        refused = await context.authorize(ready)
        results |= {key: _failure_message(key, reason) for key, reason in refused.items()}
        allowed = [call for call in ready if call.id not in refused]
        context.tool_calls += len(allowed)
        if allowed:
            results |= await _run_concurrently(allowed, context)
    made = [*answer.tool_calls, *answer.invalid_tool_calls]
    for call in made:
        if results[call["id"]].status == "error":
            same = f"{call['name']} {call['args']}"
            context.failed_calls[same] += 1
            if context.failed_calls[same] >= _MAX_SAME_FAILURES:
                raise LimitReached("same_call_fails")
    return [results[call["id"]] for call in made]


async def _run_concurrently(
    calls: Sequence[ToolInvocation], context: TurnContext
) -> dict[str | None, ToolMessage]:
    if not calls:
        return {}
    loop = asyncio.get_running_loop()
    tasks: dict[asyncio.Task[ToolMessage], ToolInvocation] = {}
    for call in calls:
        context.on_tool_start(call)
        tasks[loop.create_task(_run_tool(call, context), name=f"tool {call.tool.name}")] = call
    try:
        # Not gather, which would cancel all of them at once.
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        return {call.id: task.result() for task, call in tasks.items() if task.done()}
    except BaseException:
        # Cancelled, or a sub-agent reached a limit. Writes may be under way on the device: wait a little for them.
        writing = {task for task, call in tasks.items() if call.action in _WRITES and not task.done()}
        for task in tasks.keys() - writing:
            task.cancel()
        if writing:
            await asyncio.wait(writing, timeout=_WRITE_GRACE_S)
        for task in writing:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _run_tool(call: ToolInvocation, context: TurnContext) -> ToolMessage:
    wish = {"name": call.tool.name, "args": call.arguments, "id": call.id, "type": "tool_call"}
    try:
        found = await call.tool.ainvoke(wish, {"configurable": context.tool_config})
    except ToolException as failure:
        return ToolMessage(str(failure), tool_call_id=call.id, status="error")
    except ValidationError as error:
        return _failure_message(call.id, _validation_text(error))
    except (LimitReached, llm.ModelError):
        raise  # raised in a sub-agent; they end the whole turn
    except Exception as error:
        log_failure("tool.broke", error, tool=call.tool.name)
        return _failure_message(call.id, "the tool broke; it is not known whether anything was changed")
    return found if isinstance(found, ToolMessage) else ToolMessage(str(found), tool_call_id=call.id)


def _parse_arguments(text: str) -> dict[str, Any] | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _validation_text(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found[:5])


def _failure_message(call_id: str | None, reason: str) -> ToolMessage:
    return ToolMessage(f"Failed: {reason}.", tool_call_id=call_id, status="error")


def to_wire(messages: Sequence[BaseMessage]) -> list[llm.Message]:
    """LangChain's messages in the format of a model endpoint."""
    return [_wire_message(message) for message in messages]


def _wire_message(message: BaseMessage) -> llm.Message:
    match message:
        case ToolMessage():
            return {"role": "tool", "tool_call_id": message.tool_call_id, "content": str(message.content)}
        case AIMessage(tool_calls=calls, invalid_tool_calls=invalid) if calls or invalid:
            return {
                "role": "assistant",
                "content": str(message.content),  # not null: templates join it to a text
                "tool_calls": [
                    *(
                        _wire_tool_call(call["id"], call["name"], orjson.dumps(call["args"]).decode())
                        for call in calls
                    ),
                    *(_wire_tool_call(call["id"], call["name"], call["args"]) for call in invalid),
                ],
            }
        case AIMessage():
            return {"role": "assistant", "content": str(message.content)}
        case SystemMessage():
            return {"role": "system", "content": str(message.content)}
    return {"role": "user", "content": str(message.content)}


def _wire_tool_call(key: str | None, name: str | None, arguments: str | None) -> llm.WireToolCall:
    # Arguments that are not a JSON object are sent back as an empty one: providers reject the whole request otherwise.
    return llm.ToolCall(
        key or "", name or "", arguments if arguments and _parse_arguments(arguments) else "{}"
    ).wire()
