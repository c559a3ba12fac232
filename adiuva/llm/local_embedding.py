"""Client of the local embedding model, a process on this machine (adiuva.local_embeddings)."""

from __future__ import annotations

from typing import Final

from adiuva.llm import openai_format
from adiuva.llm.base import EmbeddingModel
from adiuva.llm.transport import Endpoint
from adiuva.local_embeddings import CONFIGURED_NAME, DEFAULT_PORT, MODEL

LOCAL: Final = CONFIGURED_NAME
_DEFAULT_BASE: Final = f"http://127.0.0.1:{DEFAULT_PORT}/v1"


class LocalEmbeddings(EmbeddingModel):
    """Embeddings of the local process. `api_base` is its address; "" stands for its default port."""

    def __init__(self, api_base: str) -> None:
        self._endpoint = Endpoint(api_base or _DEFAULT_BASE, "")
        super().__init__(MODEL, self._endpoint.name)
        self.provider = ""  # nothing leaves this machine

    async def _embed_batch(self, texts: list[str]) -> tuple[list[list[float]], int]:
        body = {
            "model": MODEL,
            # JSON cannot carry a lone surrogate.
            "input": [text.encode("utf-8", "replace").decode() for text in texts],
        }
        answer = await self._endpoint.post_json("embeddings", body)
        return openai_format.parse_embeddings(answer, len(texts)), openai_format.embedding_tokens(answer)
