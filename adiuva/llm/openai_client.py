"""Client for endpoints with the OpenAI HTTP API."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import orjson
from django.conf import settings

from adiuva.llm import errors, openai_format, transport
from adiuva.llm.base import EmbeddingModel
from adiuva.llm.capabilities import Feature, Features, messages_for, response_format_for, tools_for
from adiuva.llm.context_window import listed_window, window_in_models, window_in_props
from adiuva.llm.endpoint_chat import EndpointChat
from adiuva.llm.streamed_body import Body
from adiuva.llm.transport import Endpoint
from adiuva.llm.types import Delta, ModelRequest, OnText, Reply, Text, json_of_tools

DEFAULT_BASE = "https://api.openai.com/v1"
_OPENAI = "api.openai.com"
_STREAM_CONTENT_TYPES = {"text/event-stream", "text/plain", "application/octet-stream"}
# The wait for usage and [DONE] after the finish reason.
_AFTER_FINISH_TIMEOUT_S = 5.0
# The wait for the rest of a finished stream, so that its connection can be used again.
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

    async def _complete_once(self, request: ModelRequest, refused: Features) -> Reply:
        return openai_format.parse_completion(
            await self._endpoint.post_json("chat/completions", self._body(request, refused))
        )

    async def _stream_once(
        self, request: ModelRequest, refused: Features, on_text: OnText | None = None
    ) -> AsyncGenerator[list[Delta], None]:
        body = self._body(request, refused)
        if Feature.STREAM not in refused:
            body["stream"] = True
            if Feature.STREAM_USAGE not in refused:
                body["stream_options"] = {"include_usage": True}
        timeout_s = settings.MODEL_TIMEOUT_S
        async with self._endpoint.post("chat/completions", body, silence_s=timeout_s) as response:
            if response.content_type == "application/json":  # the endpoint does not stream
                raw = b"".join([piece async for piece in transport.chunks(response, timeout_s)])
                yield _deltas_of_whole_answer(raw)
                return
            if response.content_type not in _STREAM_CONTENT_TYPES:
                raise errors.ModelGarbled(
                    "the model's address answers, but not as a model: check the api_base"
                )
            async with transport.streamed_body(response, timeout_s) as source:
                answer, goes_on = _StreamedAnswer(), True
                while goes_on and not answer.deltas.done:
                    if not answer.deltas.reason:
                        goes_on = await source.pass_on(answer.take)
                    elif goes_on := bool(piece := await _late_piece(source, _AFTER_FINISH_TIMEOUT_S)):
                        answer.take(piece)
                    if not goes_on:
                        answer.end()
                    if text := answer.taken():
                        yield [Text(text)]
                        answer.on_text = on_text  # from now on nobody asks another model instead
                yield answer.deltas.finish()
                if not source.is_over:
                    await _late_piece(source, _DRAIN_TIMEOUT_S)

    def _body(self, request: ModelRequest, refused: Features) -> dict[str, Any]:
        messages = messages_for(request, refused)
        written = request.messages_json if messages is request.messages else orjson.dumps(messages)
        body: dict[str, Any] = {
            **settings.MODEL_EXTRAS,
            "model": self._model,
            "messages": orjson.Fragment(written),
        }
        if self._endpoint.host == _OPENAI and messages and messages[0]["role"] == "system":
            # Requests with the same prefix go to the same machine, whose cache holds it.
            body["prompt_cache_key"] = hashlib.sha256(str(messages[0]["content"]).encode()).hexdigest()[:32]
        if tools := tools_for(request, refused):
            body["tools"] = orjson.Fragment(json_of_tools(tools))
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
    """Yield a whole answer, sent instead of a stream, as deltas."""
    try:
        reply = openai_format.parse_completion(openai_format.loads(raw))
    except ValueError:
        raise errors.ModelGarbled("the model's address answers, but not with JSON") from None
    return [*([Text(reply.text)] if reply.text else []), *reply.tool_calls, reply.finish_delta]


class _StreamedAnswer:
    """Answer on its way. `on_text` gets its text as it comes; without it, the text is kept for the waiting task."""

    def __init__(self) -> None:
        self.deltas = openai_format.DeltaAssembler()
        self.on_text: OnText | None = None
        self._lines = openai_format.EventStreamParser()
        self._kept = ""

    def take(self, piece: bytes) -> bool:
        """Take a piece of the stream. Returns whether there is more to do than showing its text."""
        deltas = self.deltas
        text = deltas.text_of(self._lines.feed(piece))
        if self.on_text is None:
            self._kept += text
        elif text:
            self.on_text(text)
        return bool(self._kept or deltas.reason or deltas.done)

    def end(self) -> None:
        self._kept += self.deltas.text_of(self._lines.close())

    def taken(self) -> str:
        """Return the text that was kept."""
        kept, self._kept = self._kept, ""
        return kept


async def _late_piece(source: Body, within_s: float) -> bytes:
    """Return the next piece behind the end of an answer. A stream that stays open for this many seconds, breaks or
    never stops counts as ended."""
    pieces: list[bytes] = []

    def take(piece: bytes) -> bool:
        pieces.append(piece)
        return True

    try:
        async with asyncio.timeout(within_s):
            await source.pass_on(take)
    except (TimeoutError, aiohttp.ClientError, errors.ModelGarbled):
        pass
    return b"".join(pieces)
