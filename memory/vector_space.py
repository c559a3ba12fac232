"""Vectors of texts: by the configured embedding model, or the lexical one. Each model's are a space of their own."""

from __future__ import annotations

import asyncio
from typing import Final

from adiuva import llm
from adiuva.core.logging import log
from adiuva.llm.lexical import LexicalEmbeddings

_QUERY_S: Final = 2.0  # that a turn waits for the vector of its question; words alone find much, too


def current_space() -> str:
    """The name of the model whose vectors can be compared with those of `vector_of`."""
    return llm.embedding_model().name


def embed_now(text: str) -> list[float] | None:
    """A vector that costs no request to anybody; None where one must be asked for."""
    model = llm.embedding_model()
    return model.embed_now(text) if isinstance(model, LexicalEmbeddings) else None


async def embed_question(text: str) -> list[float] | None:
    """The vector of a question. None, and a line in the log, when the model does not give one in time."""
    model = llm.embedding_model()
    if isinstance(model, LexicalEmbeddings):
        return model.embed_now(text)
    try:
        async with asyncio.timeout(_QUERY_S):
            return (await model.embed([text]))[0]
    except (llm.ModelError, TimeoutError) as error:
        log.warning("memory.no_vector", error=type(error).__name__)
        return None
