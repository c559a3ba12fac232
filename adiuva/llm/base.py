"""Base classes of models: the interface for the rest of Adiuva, with retries and concurrency limits."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from adiuva.llm import errors, transport
from adiuva.llm.capabilities import Feature, Features, send_adapted
from adiuva.llm.json_extraction import read_json
from adiuva.llm.messages import in_strict_order
from adiuva.llm.types import (
    ChatRequest,
    Delta,
    Finish,
    Message,
    Reply,
    Schema,
    StructuredReply,
    Text,
    Tool,
    ToolCall,
)

EMBEDDING_BATCH_SIZE = 64

# Answers are bounded, so that a model that repeats itself ends: JSON of a document, and what a user reads.
_MAX_STRUCTURED_TOKENS = 8_192
MAX_CHAT_TOKENS = 4_096
CHAT_TEMPERATURE = 0.3

# An answer may take so many times the silence that is allowed: a stream of blanks would go on for ever.
_LONGEST_ANSWER = 10


def provider_of(name: str, endpoint: str) -> str:
    """Who receives the requests: the host of a custom endpoint, or else the provider in LiteLLM's name."""
    host = urlsplit(endpoint.rpartition(" ")[2]).hostname
    provider, slash, _ = name.partition("/")
    if host and host != "api.openai.com":
        return host
    return provider if slash else "openai"


class ChatModel(ABC):
    """A chat model. `name`: its configured LiteLLM name; `endpoint`: its address; `provider`: who receives requests."""

    # Whether whole answers are read from a stream too: then only silence ends the wait for a long one.
    reads_whole_answers_from_streams = False

    def __init__(self, name: str, endpoint: str) -> None:
        self.name = name
        self.endpoint = endpoint
        self.provider = provider_of(name, endpoint)

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        schema: Schema | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Reply:
        """Return one whole answer. Raises ModelError, for transient faults after retries.

        settings.MODEL_TIMEOUT_S is the longest silence of each attempt, without the wait for the concurrency limit.
        """
        request = ChatRequest(in_strict_order(messages), tools, schema, max_tokens, temperature)
        return await transport.with_retries(
            self.name, self.endpoint, partial(self._complete_adapted, request)
        )

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> AsyncGenerator[list[Delta], None]:
        """Yield deltas as they arrive, those of one read as one list; tool calls and a Finish come last.

        Transient faults are retried until the first delta, and raised after it. A stream that breaks off raises
        ModelInterrupted. Closing the generator, or cancelling its reader, closes the HTTP request at once.
        """
        request = ChatRequest(in_strict_order(messages), tools, None, max_tokens, temperature)
        tried = 0
        while True:
            has_begun = False
            try:
                async with (
                    transport.stream_limit(self.endpoint).slot(transport.caller.get()),
                    aclosing(await self._begin_stream(request)) as source,
                ):
                    async for deltas in source:
                        has_begun = True
                        yield deltas
                return
            except errors.ModelError as error:
                if has_begun:
                    raise
                failure = error
            tried += 1
            await transport.pause_before_retry(failure, tried, self.name)

    async def structured(
        self,
        messages: Sequence[Message],
        *,
        name: str,
        schema: Mapping[str, Any],
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> StructuredReply:
        """Ask for JSON by schema. Raises BadOutput if there is no JSON in the answer.

        The value is not checked against the schema; `llm.structured.ask_structured` checks and repairs answers. An
        endpoint that takes no schemas gets them in the prompt.
        """
        reply = await self.complete(
            messages,
            schema=Schema(name, schema),
            max_tokens=max_tokens or _MAX_STRUCTURED_TOKENS,
            temperature=0.0 if temperature is None else temperature,
        )
        found = read_json(reply.text)
        if not found.values:
            is_cut = reply.finish == "length" or found.cut is not None
            why = "was cut at the length limit" if is_cut else "holds no JSON value"
            raise errors.BadOutput(
                f"the model's answer {why}", text=reply.text, usage=reply.usage, cut=found.cut
            )
        return StructuredReply(found.values[found.longest], reply.text, reply.usage, found.values, found.cut)

    async def _complete_adapted(self, request: ChatRequest, began: Callable[[], None]) -> Reply:
        return await send_adapted(
            (self.endpoint, self.name),
            request,
            streams=self.reads_whole_answers_from_streams,
            send=partial(self._complete, request, began),
        )

    async def _complete(self, request: ChatRequest, began: Callable[[], None], refused: Features) -> Reply:
        if not self.reads_whole_answers_from_streams or Feature.STREAM in refused:
            return await self._complete_once(request, refused)
        text: list[str] = []
        calls: list[ToolCall] = []
        try:
            async with (
                asyncio.timeout(settings.MODEL_TIMEOUT_S * _LONGEST_ANSWER),
                aclosing(self._stream_once(request, refused)) as source,
            ):
                async for deltas in source:
                    began()
                    for delta in deltas:
                        match delta:
                            case Text(piece):
                                text.append(piece)
                            case ToolCall():
                                calls.append(delta)
                            case Finish(reason, usage):
                                return Reply("".join(text), tuple(calls), reason, usage)
        except TimeoutError:
            raise errors.ModelTimeout("the model did not come to the end of its answer") from None
        raise errors.ModelInterrupted("the model's answer broke off")

    async def _begin_stream(self, request: ChatRequest) -> AsyncGenerator[list[Delta], None]:
        """A stream whose first deltas have arrived, so that the endpoint has taken the request."""

        async def begin(refused: Features) -> AsyncGenerator[list[Delta], None]:
            source = self._stream_once(request, refused)
            try:
                first = await anext(source, None)
            except BaseException:
                await source.aclose()
                raise
            return _chain(first, source)

        return await send_adapted((self.endpoint, self.name), request, streams=True, send=begin)

    @abstractmethod
    async def _complete_once(self, request: ChatRequest, refused: Features) -> Reply:
        """One attempt at a whole answer, without the features that the endpoint refuses."""

    @abstractmethod
    def _stream_once(self, request: ChatRequest, refused: Features) -> AsyncGenerator[list[Delta], None]:
        """One attempt at a stream, without the features that the endpoint refuses."""


async def _chain(
    first: list[Delta] | None, rest: AsyncGenerator[list[Delta], None]
) -> AsyncGenerator[list[Delta], None]:
    async with aclosing(rest):
        if first is not None:
            yield first
            async for deltas in rest:
                yield deltas


class EmbeddingModel(ABC):
    """Turns texts into vectors. Vectors of different models are not comparable."""

    def __init__(self, name: str, endpoint: str) -> None:
        self.name = name
        self.endpoint = endpoint
        self.provider = provider_of(name, endpoint)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text, in order. Raises ModelError, for transient faults after retries."""
        vectors: list[list[float]] = []
        for start in range(0, len(texts), EMBEDDING_BATCH_SIZE):
            # Providers refuse a whole batch for one empty text.
            batch = [text or " " for text in texts[start : start + EMBEDDING_BATCH_SIZE]]
            vectors += await transport.with_retries(
                self.name, self.endpoint, partial(self._embed_in_slot, batch)
            )
        return vectors

    async def _embed_in_slot(self, texts: list[str], _: Callable[[], None]) -> list[list[float]]:
        return await self._embed_batch(texts)

    @abstractmethod
    async def _embed_batch(self, texts: list[str]) -> list[list[float]]:
        """One attempt at a batch."""
