"""Serves the rules behind the OpenAI HTTP API, on loopback only."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web

from adiuva.core import openai_server
from adiuva.core.openai_server import BadRequest, json_response, read_body
from adiuva.offline_llm import (
    CHAT_MODEL,
    agent_interview,
    chat,
    extraction,
    memory_extraction,
)
from adiuva.offline_llm.messages import message_text
from adiuva.offline_llm.turn_state import Answer

_ROLES = {"system", "developer", "user", "assistant", "tool"}
_WORD_AND_SPACE = re.compile(r"\S+\s*|\s+")
_WORDS_PER_CHUNK = 4


def create_application() -> web.Application:
    app = openai_server.create_application(CHAT_MODEL, about=chat.WHAT_IT_IS)
    app.router.add_post("/v1/chat/completions", _completions)
    return app


async def _completions(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, CHAT_MODEL)
    messages, tools, schema = _read_messages(body), _read_tools(body), _read_schema(body)
    # In a thread, so that a long document does not block other requests.
    answer = await asyncio.to_thread(_answer, messages, tools, schema)
    calls: list[dict[str, Any]] = [
        {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": orjson.dumps(call.arguments).decode()},
        }
        for call in answer.tool_calls
    ]
    given = sum(len(message_text(message)) for message in messages)
    made = len(answer.text) + sum(len(str(call.arguments)) for call in answer.tool_calls)
    usage = _usage(given, made)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex[:24]}", "created": int(time.time()), "model": CHAT_MODEL}
    finish = "tool_calls" if calls else "stop"
    if not body.get("stream"):
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return json_response({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
    options = body.get("stream_options")
    wants_usage = isinstance(options, dict) and options.get("include_usage") is True
    return await _stream_response(request, head, answer.text, calls, finish, usage if wants_usage else None)


async def _stream_response(
    request: web.Request,
    head: dict[str, Any],
    text: str,
    calls: list[dict[str, Any]],
    finish: str,
    usage: dict[str, int] | None,
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)

    async def send(choices: list[dict[str, Any]], **more: Any) -> None:
        chunk = {**head, "object": "chat.completion.chunk", "choices": choices, **more}
        await response.write(b"data: " + orjson.dumps(chunk) + b"\n\n")

    async def delta(content: dict[str, Any], reason: str | None = None) -> None:
        await send([{"index": 0, "delta": content, "finish_reason": reason}])

    await delta({"role": "assistant", "content": ""})
    words = iter(_WORD_AND_SPACE.findall(text))
    while piece := "".join(itertools.islice(words, _WORDS_PER_CHUNK)):
        await delta({"content": piece})
    for index, call in enumerate(calls):
        whole = call["function"]["arguments"]
        half = len(whole) // 2
        begun = {**call, "index": index, "function": {**call["function"], "arguments": whole[:half]}}
        await delta({"tool_calls": [begun]})
        await delta({"tool_calls": [{"index": index, "function": {"arguments": whole[half:]}}]})
    await delta({}, finish)
    if usage is not None:
        await send([], usage=usage)
    await response.write(b"data: [DONE]\n\n")
    return response


def _answer(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]], schema: tuple[str, Mapping[str, Any]] | None
) -> Answer:
    if schema is None:
        return chat.answer(messages, tools)
    name, body = schema
    match name:
        case "records":
            value = extraction.extract_records(messages, body)
        case "journey":
            value = agent_interview.next_step(messages, body)
        case "memory":
            value = memory_extraction.memory_operations(messages)
        case "episode":
            value = memory_extraction.summarize_lines(messages, "conversation", "user: ")
        case "condensed":
            value = memory_extraction.summarize_lines(messages, "notes", "")
        case "patterns":
            value = memory_extraction.find_patterns(messages)
        case _:
            value = extraction.minimal_value(body)
    return Answer(orjson.dumps(value).decode())


def _read_messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list of at least one message", param="messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise BadRequest(f"messages[{place}] needs a role that is known", param=f"messages[{place}].role")
        content, calls = message.get("content"), message.get("tool_calls")
        if not (content is None and calls) and not isinstance(content, str | list):
            raise BadRequest(
                f"messages[{place}].content must be a text or its parts", param=f"messages[{place}].content"
            )
        if calls is not None and not (isinstance(calls, list) and all(map(_is_call, calls))):
            raise BadRequest(
                f"messages[{place}].tool_calls must be a list", param=f"messages[{place}].tool_calls"
            )
    return messages


def _is_call(call: Any) -> bool:
    return (
        isinstance(call, dict) and isinstance(call.get("id"), str) and isinstance(call.get("function"), dict)
    )


def _read_tools(body: dict[str, Any]) -> list[dict[str, Any]]:
    tools = body.get("tools")
    if tools is None:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRequest("tools must be a list of tools", param="tools")
    return tools


def _read_schema(body: dict[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    response_format = body.get("response_format")
    if response_format is None or (
        isinstance(response_format, dict) and response_format.get("type") == "text"
    ):
        return None
    inner = (
        response_format.get("json_schema")
        if isinstance(response_format, dict) and response_format.get("type") == "json_schema"
        else None
    )
    if (
        not isinstance(inner, dict)
        or not isinstance(inner.get("name"), str)
        or not isinstance(inner.get("schema"), dict)
    ):
        raise BadRequest(
            "response_format must be a json_schema with a name and a schema", param="response_format"
        )
    return inner["name"], inner["schema"]


def _usage(given: int, made: int) -> dict[str, int]:
    """Estimate the token counts at four characters a token."""
    prompt, completion = -(-given // 4), -(-made // 4)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
