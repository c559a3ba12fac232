"""Base classes of models: the interface for the rest of Adiuva, with retries and concurrency limits."""

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

# (endpoint, model) that have refused response_format. Kept for the life of the process.
_schema_unsupported: set[tuple[str, str]] = set()


def provider_of(name: str, endpoint: str) -> str:
    """Who receives the requests: the host of a custom endpoint, or else the provider in LiteLLM's name."""
    host = urlsplit(endpoint.rpartition(" ")[2]).hostname
    provider, slash, _ = name.partition("/")
    if host and host != "api.openai.com":
        return host
    return provider if slash else "openai"


class ChatModel(ABC):
    """A chat model. `name`: its configured LiteLLM name; `endpoint`: its address; `provider`: who receives requests."""

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

        settings.MODEL_TIMEOUT_S applies to each attempt, without the wait for the concurrency limit.
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
        """Yield deltas as they arrive, those of one read as one list; tool calls and a Finish come last.

        Transient faults are retried until the first delta, and raised after it. A stream that breaks off raises
        ModelInterrupted. Closing the generator, or cancelling its reader, closes the HTTP request at once.
        """
        request = ChatRequest(messages, tools, None, max_tokens, temperature)
        tried = 0
        while True:
            has_begun = False
            try:
                async with (
                    transport.concurrency_limit(self.endpoint, streams=True).slot(transport.caller.get()),
                    aclosing(self._stream_once(request)) as source,
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

        The value is not checked against the schema; `llm.structured.ask_structured` checks and repairs answers.
        """
        wanted = Schema(name, schema)
        request = ChatRequest(messages, None, wanted, max_tokens, temperature)
        in_prompt = replace(request, messages=with_schema_in_prompt(list(messages), wanted), schema=None)
        key = (self.endpoint, self.name)
        if key in _schema_unsupported:
            reply = await self._complete_with_retries(in_prompt)
        else:
            try:
                reply = await self._complete_with_retries(request)
            except errors.ModelRejected as refusal:
                if not refusal.refuses_schema:
                    raise
                reply = await self._complete_with_retries(in_prompt)
                _schema_unsupported.add(key)  # the answer without it proves that the schema was the reason
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
        """One attempt at a whole answer."""

    @abstractmethod
    def _stream_once(self, request: ChatRequest) -> AsyncGenerator[list[Delta], None]:
        """One attempt at a stream."""


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
                self.name, self.endpoint, partial(self._embed_batch, batch)
            )
        return vectors

    @abstractmethod
    async def _embed_batch(self, texts: list[str]) -> list[list[float]]:
        """One attempt at a batch."""
