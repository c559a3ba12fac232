"""Models as the rest of Adiuva sees them: chat models, and embedding models with their batches and retries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from adiuva.llm import errors, transport
from adiuva.llm.context_window import ContextWindow
from adiuva.llm.json_extraction import read_json
from adiuva.llm.metering import count_embedding
from adiuva.llm.types import Delta, Message, OnText, Reply, Schema, StructuredReply, Tool

EMBEDDING_BATCH_SIZE = 64

# Answers are bounded, so that a model that repeats itself ends. The bounds: JSON of a document, and text for a user.
_MAX_STRUCTURED_TOKENS = 8_192
MAX_CHAT_TOKENS = 4_096
CHAT_TEMPERATURE = 0.3


def provider_of(name: str, endpoint: str) -> str:
    """Return who receives the requests: the host of a custom endpoint, or else the provider in LiteLLM's name."""
    host = urlsplit(endpoint.rpartition(" ")[2]).hostname
    provider, slash, _ = name.partition("/")
    if host and host != "api.openai.com":
        return host
    return provider if slash else "openai"


class ChatModel(ABC):
    """Chat model. `name`: its configured LiteLLM name; `endpoint`: its address; `provider`: who receives requests."""

    def __init__(self, name: str, endpoint: str) -> None:
        self.name = name
        self.endpoint = endpoint
        self.provider = provider_of(name, endpoint)

    @property
    @abstractmethod
    def window(self) -> ContextWindow:
        """Return the model's window, as far as it is known by now."""

    @abstractmethod
    async def find_window(self) -> int:
        """Return the tokens that the model reads at once, its answer included; 0 if that is unknown."""

    @abstractmethod
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

    @abstractmethod
    def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        size: int | None = None,
        on_text: OnText | None = None,
    ) -> AsyncGenerator[list[Delta], None]:
        """Yield deltas as they arrive, those of one read as one list; tool calls and a Finish come last.

        `size`: the request_size of messages and tools, if the caller knows it. `on_text` gets text as soon as it is
        there, without waking the task that reads; some text is yielded nevertheless, the first text above all. Both
        come in order, and only while the generator is asked for more. Transient faults are retried until the first
        delta, and raised after it. A stream that breaks off raises ModelInterrupted. Closing the generator, or
        cancelling its reader, closes the HTTP request at once.
        """

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
            raise errors.BadOutput(
                "the model's answer was cut at the length limit"
                if is_cut
                else "the model's answer holds no JSON value",
                text=reply.text,
                usage=reply.usage,
                cut=found.cut,
            )
        return StructuredReply(found.values[found.longest], reply.text, reply.usage, found.values, found.cut)


class EmbeddingModel(ABC):
    """Model that turns texts into vectors. Vectors of different models are not comparable."""

    def __init__(self, name: str, endpoint: str) -> None:
        self.name = name
        self.endpoint = endpoint
        self.provider = provider_of(name, endpoint)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return a vector for each text, in order. Raises ModelError, for transient faults after retries."""
        vectors: list[list[float]] = []
        for start in range(0, len(texts), EMBEDDING_BATCH_SIZE):
            # Providers refuse a whole batch for one empty text.
            batch = [text or " " for text in texts[start : start + EMBEDDING_BATCH_SIZE]]
            vectors += await transport.with_retries(
                self.name, self.endpoint, partial(self._embed_in_slot, batch)
            )
        return vectors

    async def _embed_in_slot(self, texts: list[str], _: Callable[[], None]) -> list[list[float]]:
        vectors, tokens = await self._embed_batch(texts)
        if self.provider:  # else nothing has left this machine
            await count_embedding(self.name, texts, tokens)
        return vectors

    @abstractmethod
    async def _embed_batch(self, texts: list[str]) -> tuple[list[list[float]], int]:
        """Make one attempt at a batch. Returns the vectors, and the provider's count of tokens, 0 without one."""
