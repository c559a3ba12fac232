"""An assistant's tools: their description for the model, and how its calls are carried out.

A model's calls are untrusted: if a tool does not exist, its arguments do not fit or it fails, the model is told so in
words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, ToolException
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, ValidationError

from adiuva import llm
from adiuva.core import tracing
from adiuva.core.logging import log_failure
from chat.prompts import SystemPrompt, system_prompt
from chat.turn_context import LimitReached, ToolInvocation, TurnContext

# How long a cancelled turn waits for writes that are under way, so that it knows what happened.
_WRITE_GRACE_S: Final = 2.0
_MAX_CALLS_PER_ANSWER: Final = 64
_MAX_SAME_FAILURES: Final = 3
_WRITES: Final = frozenset({"insert", "update", "delete"})
_CHANGES: Final = _WRITES | {"change"}


class Assistant:
    """A prompt and its tools, which are built once."""

    def __init__(self, prompt: str, tools: Sequence[BaseTool], unlisted: Sequence[BaseTool] = ()) -> None:
        """`prompt`: its name. `unlisted`: tools that the model is not told of, but whose calls are carried out."""
        self._prompt = prompt
        self.tools = {tool.name: tool for tool in (*tools, *unlisted)}
        self._listed = ", ".join(tool.name for tool in tools)
        self.schemas = llm.Tools(_tool_schema(tool) for tool in tools)
        # Built once because LangChain builds them again at each access.
        self._checks = {tool.name: tool.tool_call_schema for tool in (*tools, *unlisted)}
        self._arguments = {
            schema["function"]["name"]: schema["function"].get("parameters", {}).get("properties", {})
            for schema in [*self.schemas, *map(_tool_schema, unlisted)]
        }

    @cached_property
    def without_tools(self) -> Assistant:
        """The same assistant, for an answer without tool calls."""
        return Assistant(self._prompt, ())

    @property
    def prompt(self) -> SystemPrompt:
        """The system prompt. It depends on the installation's secret, so it is not made when modules are imported."""
        return system_prompt(self._prompt)

    def call_problem(self, name: str, arguments: dict[str, Any]) -> str:
        """Return why a call cannot be carried out, in words for the model; "" if it can."""
        if name not in self.tools:
            return f"there is no such tool; there are {self._listed}"
        # LangChain would drop an unknown argument, and the model would believe that it had an effect.
        if unknown := arguments.keys() - self._arguments[name].keys():
            known = ", ".join(self._arguments[name]) or "none"
            return f"there is no argument {', '.join(sorted(unknown))}; there are {known}"
        check = self._checks[name]
        if isinstance(check, type) and issubclass(check, BaseModel):  # else a JSON Schema: the tool checks it
            try:
                check.model_validate(arguments)
            except ValidationError as error:
                return _validation_text(error)
        return ""


def _tool_schema(tool: BaseTool) -> dict[str, Any]:
    """Return what a model reads of a tool, without defaults: they cost tokens, and break some chat templates."""
    schema = convert_to_openai_tool(tool)
    if "parameters" in schema["function"]:
        found = schema["function"]["parameters"]["properties"]
        for argument in found.values():
            argument.pop("default", None)
        # Parameters named like a Python keyword or builtin end in an underscore; the model sees them without it.
        schema["function"]["parameters"]["properties"] = {name.rstrip("_"): found[name] for name in found}
    return schema


async def run_tool_calls(assistant: Assistant, answer: AIMessage, context: TurnContext) -> list[ToolMessage]:
    """Return the result of each call, in order."""
    results: dict[str | None, ToolMessage] = {
        call["id"]: _failure_message(call["id"], call["error"] or "the arguments are not a JSON object")
        for call in answer.invalid_tool_calls
    }
    ready: list[ToolInvocation] = []
    model_call = context.model_calls
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
        for each in ready:
            if each.id in refused:
                context.note_step(each, model_call=model_call, ok=False)
        if allowed:
            results |= await _run_concurrently(allowed, context, model_call)
    made = [*answer.tool_calls, *answer.invalid_tool_calls]
    for call in made:
        if results[call["id"]].status == "error":
            same = f"{call['name']} {call['args']}"
            context.failed_calls[same] += 1
            if context.failed_calls[same] >= _MAX_SAME_FAILURES:
                raise LimitReached("same_call_fails")
    return [results[call["id"]] for call in made]


async def _run_concurrently(
    calls: Sequence[ToolInvocation], context: TurnContext, model_call: int
) -> dict[str | None, ToolMessage]:
    if not calls:
        return {}
    loop = asyncio.get_running_loop()
    tasks: dict[asyncio.Task[ToolMessage], ToolInvocation] = {}
    for call in calls:
        context.on_tool_start(call)
        tasks[loop.create_task(_run_tool(call, context, model_call), name=f"tool {call.tool.name}")] = call
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


async def _run_tool(call: ToolInvocation, context: TurnContext, model_call: int) -> ToolMessage:
    is_done = False
    try:
        with tracing.span(f"tool {call.tool.name}", gen_ai__tool__name=call.tool.name) as span:
            result = await _invoke(call, context)
            is_done = result.status != "error"
            if not is_done:
                span.fail("tool_failed")
            return result
    finally:  # even if the call was cancelled or has ended the turn
        context.note_step(call, model_call=model_call, ok=is_done)


async def _invoke(call: ToolInvocation, context: TurnContext) -> ToolMessage:
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
        context.has_changed = context.has_changed or call.action in _CHANGES
        return _failure_message(call.id, "the tool broke; it is not known whether anything was changed")
    context.has_changed = context.has_changed or call.action in _CHANGES
    return found if isinstance(found, ToolMessage) else ToolMessage(str(found), tool_call_id=call.id)


def _validation_text(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found[:5])


def _failure_message(call_id: str | None, reason: str) -> ToolMessage:
    return ToolMessage(f"Failed: {reason}.", tool_call_id=call_id, status="error")
