"""Client for all providers without the OpenAI HTTP API, through LiteLLM, which is imported at the first request.

The import takes seconds and nearly 200 MB, so it runs in a thread, and only in a process that needs it.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
from collections.abc import AsyncGenerator
from typing import Any

from django.conf import settings

from adiuva.core.errors import Text
from adiuva.llm import errors, openai_format
from adiuva.llm.base import EmbeddingModel
from adiuva.llm.capabilities import Feature, Features, messages_for, response_format_for, tools_for
from adiuva.llm.context_window import listed_window
from adiuva.llm.endpoint_chat import EndpointChat
from adiuva.llm.types import Delta, ModelRequest, OnText, Reply

_module: Any = None


async def _litellm() -> Any:
    global _module
    if _module is None:
        _module = await asyncio.to_thread(_import)
    return _module


def _import() -> Any:
    os.environ.setdefault(
        "LITELLM_LOCAL_MODEL_COST_MAP", "True"
    )  # without this it downloads a price list at import
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True  # without this it prints advice when an error occurs
    litellm.telemetry = False
    # Otherwise it stops a stream that repeats a chunk, but a table's rule or a row of blanks is legitimate.
    litellm.REPEATED_STREAMING_CHUNK_LIMIT = sys.maxsize
    return litellm


async def aclose() -> None:
    """Close the running loop's clients. LiteLLM keeps them by the loop's id, which a later loop may get again."""
    if _module is None:
        return
    cache = _module.in_memory_llm_clients_cache
    suffix = f"-{id(asyncio.get_running_loop())}"
    for key in [key for key in cache.cache_dict if str(key).endswith(suffix)]:
        client = cache.cache_dict.pop(key, None)
        cache.ttl_dict.pop(key, None)
        close = getattr(client, "close", None)
        if close is not None and inspect.isawaitable(closing := close()):
            await closing


class LiteLLMChat(EndpointChat):
    def __init__(self, name: str, api_base: str, api_key: str) -> None:
        # A provider at its own address, not a server that somebody has set up.
        super().__init__(name, _endpoint(name, api_base), keeps_thoughts_apart=not api_base)
        self._address = _connection_options(api_base, api_key)

    async def _ask_window(self) -> int:
        return await asyncio.to_thread(listed_window, self.name)

    async def _complete_once(self, request: ModelRequest, refused: Features) -> Reply:
        litellm = await _litellm()
        try:
            async with asyncio.timeout(settings.MODEL_TIMEOUT_S):
                answer = await litellm.acompletion(**self._arguments(request, refused))
        except Exception as error:
            raise _model_error(error) from None
        return openai_format.parse_completion(answer.model_dump())

    async def _stream_once(
        self, request: ModelRequest, refused: Features, on_text: OnText | None = None
    ) -> AsyncGenerator[list[Delta], None]:
        litellm = await _litellm()
        arguments = self._arguments(request, refused) | {"stream": True}
        if Feature.STREAM_USAGE not in refused:
            arguments["stream_options"] = {"include_usage": True}
        deltas, stream, began = openai_format.DeltaAssembler(), None, False
        try:
            async with asyncio.timeout(settings.MODEL_TIMEOUT_S):
                stream = await litellm.acompletion(**arguments)
            while True:
                async with asyncio.timeout(settings.MODEL_TIMEOUT_S):
                    chunk = await anext(stream, None)
                if chunk is None:
                    break
                began = True
                if found := deltas.feed_chunks([chunk.model_dump(exclude_none=True)]):
                    yield found
        except errors.ModelError:
            raise
        except Exception as error:
            translated = _model_error(error)
            if began and isinstance(translated, errors.ModelUnavailable):
                translated = errors.ModelInterrupted("the model's answer broke off")
            raise translated from None
        finally:
            if stream is not None:
                await stream.aclose()
        yield deltas.finish()

    def _arguments(self, request: ModelRequest, refused: Features) -> dict[str, Any]:
        given: dict[str, Any] = {
            "model": self.name,
            "messages": list(messages_for(request, refused)),
            "tools": list(tools) if (tools := tools_for(request, refused)) else None,
            "response_format": response_format_for(request, refused),
            "max_tokens": None if Feature.MAX_TOKENS in refused else request.max_tokens,
            "temperature": None if Feature.TEMPERATURE in refused else request.temperature,
            # For requests with tools it would import the mcp package, which is not installed, for a gateway that we do
            # not use.
            "_skip_mcp_handler": True,
        }
        if any(family in self.name for family in ("anthropic", "claude")):
            # Anthropic caches only what is marked; tools stand before the system message and are cached with it.
            given["cache_control_injection_points"] = [{"location": "message", "role": "system"}]
        # Not as LiteLLM's extra_body, because it sends that to some providers as a field of that name.
        extras = settings.MODEL_EXTRAS
        return extras | self._address | {key: value for key, value in given.items() if value is not None}


class LiteLLMEmbeddings(EmbeddingModel):
    def __init__(self, name: str, api_base: str, api_key: str) -> None:
        super().__init__(name, _endpoint(name, api_base))
        self._address = _connection_options(api_base, api_key)

    async def _embed_batch(self, texts: list[str]) -> tuple[list[list[float]], int]:
        litellm = await _litellm()
        try:
            async with asyncio.timeout(settings.MODEL_TIMEOUT_S):
                answer = await litellm.aembedding(model=self.name, input=texts, **self._address)
        except Exception as error:
            raise _model_error(error) from None
        found = answer.model_dump()
        return openai_format.parse_embeddings(found, len(texts)), openai_format.embedding_tokens(found)


def _endpoint(name: str, api_base: str) -> str:
    return f"{name.partition('/')[0]} {api_base}".strip()


def _connection_options(api_base: str, api_key: str) -> dict[str, Any]:
    """Return address, key and timeout. LiteLLM's retries are off: ours respect Retry-After, and both would multiply."""
    return {
        "api_base": api_base or None,
        "api_key": api_key or None,
        "timeout": settings.MODEL_TIMEOUT_S,
        "num_retries": 0,
        "max_retries": 0,
    }


def _model_error(error: Exception) -> errors.ModelError:
    """Return our error for one of LiteLLM's. The text is dropped, because it may hold the prompt or the key."""
    kind = type(error).__name__
    if isinstance(error, TimeoutError) or kind in {"Timeout", "APITimeoutError"}:
        return errors.ModelTimeout("the model did not answer in time")
    status = getattr(error, "status_code", None)
    if not isinstance(status, int):
        return errors.ModelGarbled(
            Text("LiteLLM could not make sense of the model's answer ({kind})", kind=kind)
        )
    detail = {key: getattr(error, key, None) for key in ("code", "type", "param")}
    headers = getattr(getattr(error, "response", None), "headers", None)
    return errors.from_status(status, {"error": detail}, headers, text=str(error))
