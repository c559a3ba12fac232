"""Language models: one interface for chat, structured output and embeddings.

Our own client asks a model named `openai/<name>`, at any endpoint with the OpenAI HTTP API (`api_base`). All other
names are LiteLLM's, which no other package of Adiuva imports. Models return untrusted data.

    async for deltas in llm.chat_model().stream(messages, tools=tools):
        for delta in deltas:
            match delta:
                case llm.Text(text): ...
                case llm.ToolCall(id, name, arguments): ...
                case llm.Finish(reason, usage): ...
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Literal
from uuid import UUID

from django.conf import settings

from adiuva.llm import litellm_client, openai_client, transport
from adiuva.llm.base import ChatModel, EmbeddingModel
from adiuva.llm.errors import (
    BadOutput,
    BudgetSpent,
    ModelContextExceeded,
    ModelEmpty,
    ModelError,
    ModelGarbled,
    ModelInterrupted,
    ModelNotConfigured,
    ModelRateLimited,
    ModelRejected,
    ModelTimeout,
    ModelUnavailable,
    PriceMissing,
    WorkBudgetSpent,
    not_configured,
)
from adiuva.llm.fallback import FallbackChat
from adiuva.llm.json_extraction import find_json
from adiuva.llm.learnt import learnt_facts
from adiuva.llm.lexical import LEXICAL, LexicalEmbeddings
from adiuva.llm.local_embedding import LOCAL, LocalEmbeddings
from adiuva.llm.metering import Meter, ModelUse, counting_into
from adiuva.llm.types import (
    Delta,
    Finish,
    Message,
    Reply,
    Schema,
    StructuredReply,
    Text,
    Tool,
    ToolCall,
    Tools,
    Usage,
    WireToolCall,
)

__all__ = [
    "BadOutput",
    "BudgetSpent",
    "ChatModel",
    "Delta",
    "EmbeddingModel",
    "Finish",
    "Message",
    "Meter",
    "ModelContextExceeded",
    "ModelEmpty",
    "ModelError",
    "ModelGarbled",
    "ModelInterrupted",
    "ModelNotConfigured",
    "ModelRateLimited",
    "ModelRejected",
    "ModelTimeout",
    "ModelUnavailable",
    "ModelUse",
    "PriceMissing",
    "Reply",
    "Schema",
    "StructuredReply",
    "Text",
    "Tool",
    "ToolCall",
    "Tools",
    "Usage",
    "WireToolCall",
    "WorkBudgetSpent",
    "aclose",
    "chat_model",
    "counting_into",
    "embedding_model",
    "find_json",
    "forget_learnt",
    "on_behalf_of",
]


Purpose = Literal["chat", "extraction", "memory"]


def chat_model(configured: Mapping[str, str] | None = None, *, purpose: Purpose = "chat") -> ChatModel:
    """Return the model that settings.MODEL, or a mapping like it, describes; built once. Raises ModelNotConfigured.

    settings.MODELS_BY_PURPOSE may name another one for a purpose, at the same address. settings.MODEL_FALLBACKS stand
    in, in their order, for a model that cannot answer.
    """
    if configured is not None:
        return _chat_model(*_named(configured, "ADIUVA_MODEL"))
    name, *address = _named(settings.MODEL, "ADIUVA_MODEL")
    name = settings.MODELS_BY_PURPOSE[purpose] or name
    if others := [other for other in settings.MODEL_FALLBACKS if other != name]:
        return _chat_model_with_fallbacks((name, *others), *address)
    return _chat_model(name, *address)


def embedding_model(configured: Mapping[str, str] | None = None) -> EmbeddingModel:
    """Return the model of settings.EMBEDDING_MODEL, or of a mapping like it; the lexical one if none is configured."""
    given = settings.EMBEDDING_MODEL if configured is None else configured
    if given.get("model", "") in ("", LEXICAL):
        return _lexical_embeddings()
    if given["model"] == LOCAL:
        return LocalEmbeddings(given.get("api_base", ""))
    return _embedding_model(*_named(given, "ADIUVA_EMBEDDING_MODEL"))


def on_behalf_of(user_id: UUID) -> None:
    """Count the running task's calls of models, and those of the tasks it starts, as this user's."""
    transport.caller.set(user_id)


async def forget_learnt(model: ChatModel) -> None:
    """Learn anew what the model's endpoint takes, its window and its habits."""
    await learnt_facts(model.endpoint, model.name).forget()


async def aclose() -> None:
    """Close the running loop's connections to models. Whoever ends a loop calls this."""
    await transport.aclose()
    await litellm_client.aclose()


def _named(configured: Mapping[str, str], variable: str) -> tuple[str, str, str]:
    name = configured.get("model", "")
    if not name or name == "openai/":
        raise not_configured(variable)
    return name, configured.get("api_base", ""), configured.get("api_key", "")


@cache
def _lexical_embeddings() -> LexicalEmbeddings:
    return LexicalEmbeddings()


@cache
def _chat_model(name: str, api_base: str, api_key: str) -> ChatModel:
    if name.startswith("openai/"):
        return openai_client.OpenAIChat(
            name, transport.Endpoint(api_base or openai_client.DEFAULT_BASE, api_key)
        )
    return litellm_client.LiteLLMChat(name, api_base, api_key)


@cache
def _chat_model_with_fallbacks(names: tuple[str, ...], api_base: str, api_key: str) -> ChatModel:
    return FallbackChat([_chat_model(name, api_base, api_key) for name in names])


@cache
def _embedding_model(name: str, api_base: str, api_key: str) -> EmbeddingModel:
    if name.startswith("openai/"):
        return openai_client.OpenAIEmbeddings(
            name, transport.Endpoint(api_base or openai_client.DEFAULT_BASE, api_key)
        )
    return litellm_client.LiteLLMEmbeddings(name, api_base, api_key)
