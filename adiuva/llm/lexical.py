"""Lexical embedding model: needs no provider. Its vectors find shared words, not shared meaning."""

from __future__ import annotations

from typing import Final

from adiuva.core import lexical_embedding
from adiuva.llm.base import EmbeddingModel

LEXICAL: Final = "lexical"


class LexicalEmbeddings(EmbeddingModel):
    """Default model if no embedding model is configured. A vector takes a fraction of a millisecond."""

    def __init__(self) -> None:
        super().__init__(LEXICAL, "")
        self.provider = ""  # nothing leaves this server

    def embed_now(self, text: str, key: bytes = b"") -> list[float]:
        """Return the vector; with a key, it is comparable only with those of the same key."""
        return lexical_embedding.embed(text, key)

    async def _embed_batch(self, texts: list[str]) -> tuple[list[list[float]], int]:
        return [lexical_embedding.embed(text) for text in texts], 0
