"""Vectors of texts, by the configured embedding model or the lexical one. Each model has its own vector space.

Texts that are not stored (questions) are embedded here; entries in a worker, by memory.embedding.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from adiuva import llm
from adiuva.llm.lexical import LexicalEmbeddings

# How long a turn waits for the vector of its question. Words alone find much, too.
_QUESTION_TIMEOUT_S: Final = 2.0

log = structlog.get_logger(__name__)


def current_space() -> str:
    """The name of the configured embedding model. Only vectors of the same model can be compared."""
    return llm.embedding_model().name


def embed_now(text: str) -> list[float] | None:
    """The vector of a text if it can be computed here without a request, else None."""
    model = llm.embedding_model()
    return model.embed_now(text) if isinstance(model, LexicalEmbeddings) else None


async def embed_question(text: str) -> list[float] | None:
    """The vector of a question. None, and a log event, if the model does not answer in time."""
    model = llm.embedding_model()
    if isinstance(model, LexicalEmbeddings):
        return model.embed_now(text)
    try:
        async with asyncio.timeout(_QUESTION_TIMEOUT_S):
            return (await model.embed([text]))[0]
    except (llm.ModelError, TimeoutError) as error:
        log.warning("memory.question_not_embedded", error=type(error).__name__)
        return None
