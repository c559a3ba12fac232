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

from adiuva.core import lexical_embedding
from adiuva.offline_model import (
    CHAT_MODEL,
    EMBEDDING_MODEL,
    agent_interview,
    chat,
    extraction,
    memory_extraction,
)
from adiuva.offline_model.messages import message_text
from adiuva.offline_model.turn import Answer

_MAX_BODY_BYTES = 32 * 1024 * 1024
_MAX_TEXTS = 2_048
_ROLES = {"system", "developer", "user", "assistant", "tool"}
_WORD_AND_SPACE = re.compile(r"\S+\s*|\s+")
_WORDS_PER_CHUNK = 4


class BadRequest(Exception):
    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


async def serve(port: int, stop: asyncio.Event) -> None:
    """Serves on 127.0.0.1 until `stop` is set. Prints one line with the address once it listens.

    Raises OSError if the port is taken.
    """
    runner = web.AppRunner(
        create_application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.5
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)  # noqa: T201
        await stop.wait()
    finally:
        await runner.cleanup()


def create_application() -> web.Application:
    app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[_error_middleware])
    app.router.add_get("/health", _health)
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/chat/completions", _completions)
    app.router.add_post("/v1/embeddings", _embeddings)
    return app


@web.middleware
async def _error_middleware(request: web.Request, handler: Any) -> web.StreamResponse:
    """Returns errors in the format of the OpenAI API."""
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except BadRequest as error:
        return _error_response(error.status, str(error), error.param, error.code)
    except web.HTTPException as error:
        return _error_response(error.status, error.reason, None, None)


def _error_response(status: int, message: str, param: str | None, code: str | None) -> web.Response:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    return _json_response(body, status)


def _json_response(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


async def _health(_: web.Request) -> web.Response:
    return _json_response({"status": "ok", "model": CHAT_MODEL, "about": chat.WHAT_IT_IS})


async def _models(_: web.Request) -> web.Response:
    rows = [
        {"id": name, "object": "model", "created": 0, "owned_by": "adiuva"}
        for name in (CHAT_MODEL, EMBEDDING_MODEL)
    ]
    return _json_response({"object": "list", "data": rows})


async def _read_body(request: web.Request, model: str) -> dict[str, Any]:
    try:
        body = orjson.loads(await request.read())
    except orjson.JSONDecodeError:
        raise BadRequest("the body is not JSON") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    if not isinstance(body.get("model"), str):
        raise BadRequest("model must be given", param="model")
    if body["model"] != model:
        raise BadRequest(
            f"there is no such model here; this address has {model}",
            status=404,
            param="model",
            code="model_not_found",
        )
    return body


async def _completions(request: web.Request) -> web.StreamResponse:
    body = await _read_body(request, CHAT_MODEL)
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
        return _json_response({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
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


async def _embeddings(request: web.Request) -> web.Response:
    body = await _read_body(request, EMBEDDING_MODEL)
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if (
        not isinstance(texts, list)
        or not 0 < len(texts) <= _MAX_TEXTS
        or not all(isinstance(t, str) for t in texts)
    ):
        raise BadRequest(f"input must be a text or a list of 1 to {_MAX_TEXTS} texts", param="input")
    if body.get("encoding_format", "float") != "float":
        raise BadRequest("encoding_format must be float", param="encoding_format")
    vectors = await asyncio.to_thread(lambda: [lexical_embedding.embed(text) for text in texts])
    rows = [
        {"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(vectors)
    ]
    usage = _usage(sum(map(len, texts)), 0)
    return _json_response({"object": "list", "data": rows, "model": EMBEDDING_MODEL, "usage": usage})


def _usage(given: int, made: int) -> dict[str, int]:
    """Estimates the token counts at four characters a token."""
    prompt, completion = -(-given // 4), -(-made // 4)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
