"""LangChain's messages in the format of a model endpoint, and an endpoint's answer as LangChain's message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, ToolMessage

from adiuva import llm


def to_wire(messages: Sequence[BaseMessage]) -> list[llm.Message]:
    """Return LangChain's messages in the format of a model endpoint."""
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
    # Arguments that are no JSON object go back as an empty one: otherwise providers reject the whole request.
    return llm.ToolCall(
        key or "", name or "", arguments if arguments and _parse_arguments(arguments) else "{}"
    ).wire()


def answer_message(text: str, calls: Sequence[llm.ToolCall], *, is_cut_off: bool) -> AIMessage:
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


def _parse_arguments(text: str) -> dict[str, Any] | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
