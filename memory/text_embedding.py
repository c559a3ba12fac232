"""Vectors of texts, by the configured embedding model or the lexical one. Each model has its own vector space.

Texts that are not stored (questions) are embedded here; entries in a worker, by memory.entry_embedding.
"""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

import structlog

from adiuva import llm
from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from adiuva.llm.lexical import LexicalEmbeddings

# How long a turn waits for the vector of its question. Words alone find much, too.
_QUESTION_TIMEOUT_S: Final = 2.0

log = structlog.get_logger(__name__)


def current_space() -> str:
    """Return the name of the configured embedding model. Only vectors of the same model can be compared."""
    return llm.embedding_model().name


def embed_now(text: str, user_id: UUID) -> list[float] | None:
    """Return the vector of a user's text if it can be computed here without a request, else None.

    It is hashed with the user's key, so that a dump does not tell which words a text has.
    """
    model = llm.embedding_model()
    if not isinstance(model, LexicalEmbeddings):
        return None
    return model.embed_now(text, cipher_for(user_id).fingerprint("words", "lexical vector"))


async def embed_texts(texts: list[str], user_id: UUID) -> list[list[float]]:
    """Return the vectors of a user's texts. Raises ModelError."""
    model = llm.embedding_model()
    if isinstance(model, LexicalEmbeddings):
        found = await db.run(lambda: [embed_now(text, user_id) for text in texts])
        return [vector for vector in found if vector is not None]
    return await model.embed(texts)


async def embed_question(text: str, user_id: UUID) -> list[float] | None:
    """Return the vector of a question. None, and a log event, if the model does not answer in time."""
    try:
        async with asyncio.timeout(_QUESTION_TIMEOUT_S):
            return (await embed_texts([text], user_id))[0]
    except (llm.ModelError, TimeoutError) as error:
        log.warning("memory.question_not_embedded", error=type(error).__name__)
        return None
