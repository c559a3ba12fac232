"""What the rest of Adiuva sees of a model, with retries and limits, whichever client is behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from adiuva.llm import errors, transport
from adiuva.llm.json_extraction import find_json, with_schema_in_prompt
from adiuva.llm.types import ChatRequest, Delta, Message, Reply, Schema, StructuredReply, Tool

EMBEDDING_BATCH_SIZE = 64

# Models at endpoints that take no response_format, learnt from their refusals. For the life of the process.
_schema_unsupported: set[tuple[str, str]] = set()


def provider_of(name: str, endpoint: str) -> str:
    """Who reads what a model is asked: the host of an endpoint of one's own, else the provider in LiteLLM's name."""
    host = urlsplit(endpoint.rpartition(" ")[2]).hostname
    provider, slash, _ = name.partition("/")
    if host and host != "api.openai.com":
        return host
    return provider if slash else "openai"


class ChatModel(ABC):
    """A chat model. `name` is the LiteLLM name it was configured with, `endpoint` where it is asked, `provider` who
    gets to read what it is asked."""

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
        """One whole answer. Raise a ModelError; transient faults have been retried by then.

        settings.MODEL_TIMEOUT_S is for each try; waiting for a place at the endpoint does not count.
        """
        return await self._complete_with_retries(
            ChatRequest(messages, tools, schema, max_tokens, temperature)
        )

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> AsyncGenerator[list[Delta], None]:
        """Deltas as they come, all that one read brought in one list; tool calls and a Finish end it.

        Until the first delta, transient faults are retried; after it they raise. A stream that breaks off
        raises ModelInterrupted. Closing the generator, or cancelling who reads it, closes the HTTP request
        at once.
        """
        request = ChatRequest(messages, tools, None, max_tokens, temperature)
        tried = 0
        while True:
            began = False
            try:
                async with (
                    transport.concurrency_limit(self.endpoint, streams=True),
                    aclosing(self._stream_once(request)) as source,
                ):
                    async for deltas in source:
                        began = True
                        yield deltas
                return
            except errors.ModelError as error:
                if began:
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
        """An answer that is JSON, asked for by schema. Raise BadOutput if no JSON is in it.

        The value is not checked against the schema: that is for the caller, who knows what to do about it.
        """
        asked = Schema(name, schema)
        request = ChatRequest(messages, None, asked, max_tokens, temperature)
        in_prompt = replace(request, messages=with_schema_in_prompt(list(messages), asked), schema=None)
        place = (self.endpoint, self.name)
        if place in _schema_unsupported:
            reply = await self._complete_with_retries(in_prompt)
        else:
            try:
                reply = await self._complete_with_retries(request)
            except errors.ModelRejected as refusal:
                if not refusal.refuses_schema:
                    raise
                reply = await self._complete_with_retries(in_prompt)
                _schema_unsupported.add(place)  # now it is sure that the schema was the reason
        try:
            value = find_json(reply.text)
        except ValueError:
            why = "was cut at the length limit" if reply.finish == "length" else "holds no JSON value"
            raise errors.BadOutput(f"the model's answer {why}", text=reply.text, usage=reply.usage) from None
        return StructuredReply(value, reply.text, reply.usage)

    async def _complete_with_retries(self, request: ChatRequest) -> Reply:
        return await transport.with_retries(self.name, self.endpoint, partial(self._complete_once, request))

    @abstractmethod
    async def _complete_once(self, request: ChatRequest) -> Reply:
        """One try at a whole answer."""

    @abstractmethod
    def _stream_once(self, request: ChatRequest) -> AsyncGenerator[list[Delta], None]:
        """One try at a stream."""


class EmbeddingModel(ABC):
    """Texts to vectors. Vectors of models with different names live in different spaces: never mix them."""

    def __init__(self, name: str, endpoint: str) -> None:
        self.name = name
        self.endpoint = endpoint
        self.provider = provider_of(name, endpoint)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text, in order. Raise a ModelError; transient faults were retried by then."""
        found: list[list[float]] = []
        for start in range(0, len(texts), EMBEDDING_BATCH_SIZE):
            # Providers refuse a whole batch for one empty text.
            batch = [text or " " for text in texts[start : start + EMBEDDING_BATCH_SIZE]]
            found += await transport.with_retries(self.name, self.endpoint, partial(self._embed_batch, batch))
        return found

    @abstractmethod
    async def _embed_batch(self, texts: list[str]) -> list[list[float]]:
        """One try at a batch."""
