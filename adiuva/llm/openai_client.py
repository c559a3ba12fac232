"""Client for endpoints with the OpenAI HTTP API."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
from django.conf import settings

from adiuva.llm import errors, openai_format, transport
from adiuva.llm.base import EmbeddingModel
from adiuva.llm.capabilities import Feature, Features, messages_for, response_format_for, tools_for
from adiuva.llm.context_window import listed_window, window_in_models, window_in_props
from adiuva.llm.endpoint_chat import EndpointChat
from adiuva.llm.transport import Endpoint
from adiuva.llm.types import ChatRequest, Delta, Reply, Text

DEFAULT_BASE = "https://api.openai.com/v1"
_OPENAI = "api.openai.com"
_STREAM_CONTENT_TYPES = {"text/event-stream", "text/plain", "application/octet-stream"}
# How long to wait for usage and [DONE] after the finish reason.
_AFTER_FINISH_TIMEOUT_S = 5.0
# How long to read the rest of a finished stream, so that its connection can be used again.
_DRAIN_TIMEOUT_S = 0.2


class OpenAIChat(EndpointChat):
    reads_whole_answers_from_streams = True

    def __init__(self, name: str, endpoint: Endpoint) -> None:
        super().__init__(name, endpoint.name, keeps_thoughts_apart=endpoint.host == _OPENAI)
        self._endpoint = endpoint
        self._model = name.removeprefix("openai/")

    async def _ask_window(self) -> int:
        if self._endpoint.host == _OPENAI:
            return await asyncio.to_thread(listed_window, self.name)
        return window_in_props(await self._endpoint.look_up("../props")) or window_in_models(
            await self._endpoint.look_up("models"), self._model
        )

    async def _complete_once(self, request: ChatRequest, refused: Features) -> Reply:
        return openai_format.parse_completion(
            await self._endpoint.post_json("chat/completions", self._body(request, refused))
        )

    async def _stream_once(
        self, request: ChatRequest, refused: Features
    ) -> AsyncGenerator[list[Delta], None]:
        body = self._body(request, refused)
        if Feature.STREAM not in refused:
            body["stream"] = True
            if Feature.STREAM_USAGE not in refused:
                body["stream_options"] = {"include_usage": True}
        timeout_s = settings.MODEL_TIMEOUT_S
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=transport.CONNECT_TIMEOUT_S, sock_read=timeout_s
        )
        async with self._endpoint.post("chat/completions", body, timeout) as response:
            if response.content_type == "application/json":  # the endpoint does not stream
                raw = b"".join([piece async for piece in transport.chunks(response, timeout_s)])
                yield _deltas_of_whole_answer(raw)
                return
            if response.content_type not in _STREAM_CONTENT_TYPES:
                raise errors.ModelGarbled(
                    "the model's address answers, but not as a model: check the api_base"
                )
            lines, deltas = openai_format.EventStreamParser(), openai_format.DeltaAssembler()
            source = transport.chunks(response, timeout_s)
            while not deltas.done:
                piece = await _next_chunk(source, _AFTER_FINISH_TIMEOUT_S if deltas.reason else None)
                if found := deltas.feed(lines.feed(piece) if piece else lines.close()):
                    yield found
                if not piece:
                    break
            yield deltas.finish()
            await _next_chunk(source, _DRAIN_TIMEOUT_S)

    def _body(self, request: ChatRequest, refused: Features) -> dict[str, Any]:
        messages = list(messages_for(request, refused))
        body: dict[str, Any] = {**settings.MODEL_EXTRAS, "model": self._model, "messages": messages}
        if self._endpoint.host == _OPENAI and messages and messages[0]["role"] == "system":
            # Requests with the same prefix go to the same machine, whose cache holds it.
            body["prompt_cache_key"] = hashlib.sha256(str(messages[0]["content"]).encode()).hexdigest()[:32]
        if tools := tools_for(request, refused):
            body["tools"] = tools
        if response_format := response_format_for(request, refused):
            body["response_format"] = response_format
        if request.max_tokens is not None and Feature.MAX_TOKENS not in refused:
            # OpenAI's newer models refuse the old name `max_tokens`; most other servers know only that one.
            own = self._endpoint.host == _OPENAI
            body["max_completion_tokens" if own else "max_tokens"] = request.max_tokens
        if request.temperature is not None and Feature.TEMPERATURE not in refused:
            body["temperature"] = request.temperature
        return body


class OpenAIEmbeddings(EmbeddingModel):
    def __init__(self, name: str, endpoint: Endpoint) -> None:
        super().__init__(name, endpoint.name)
        self._endpoint = endpoint

    async def _embed_batch(self, texts: list[str]) -> tuple[list[list[float]], int]:
        model = self.name.removeprefix("openai/")
        body = {"model": model, "input": texts, "encoding_format": "float"}
        answer = await self._endpoint.post_json("embeddings", body)
        return openai_format.parse_embeddings(answer, len(texts)), openai_format.embedding_tokens(answer)


def _deltas_of_whole_answer(raw: bytes) -> list[Delta]:
    """A whole answer, sent instead of a stream, as deltas."""
    try:
        reply = openai_format.parse_completion(openai_format.loads(raw))
    except ValueError:
        raise errors.ModelGarbled("the model's address answers, but not with JSON") from None
    return [*([Text(reply.text)] if reply.text else []), *reply.tool_calls, reply.finish_delta]


async def _next_chunk(source: AsyncGenerator[bytes, None], within: float | None = None) -> bytes:
    """The next chunk, or nothing at the end of the stream.

    `within` is given once the answer is complete: then a stream that stays open for so many seconds, breaks or never
    stops counts as ended.
    """
    if within is None:
        return await anext(source, b"")
    try:
        async with asyncio.timeout(within):
            return await anext(source, b"")
    except (TimeoutError, aiohttp.ClientError, errors.ModelGarbled):
        return b""
