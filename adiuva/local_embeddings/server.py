"""Server of the model as /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from aiohttp import web

from adiuva.core import openai_server
from adiuva.core.openai_server import BadRequest, json_response, read_body
from adiuva.local_embeddings import MODEL
from adiuva.local_embeddings.encoder import Encoder
from adiuva.local_embeddings.weights import Floats

_MAX_TEXTS: Final = 512
_ABOUT: Final = "Embeddings of intfloat/multilingual-e5-small, computed on this machine."


def create_application(encoder: Encoder) -> web.Application:
    # One thread, because the matrices are multiplied on all cores that numpy may use.
    app = openai_server.create_application(MODEL, about=_ABOUT)
    app.router.add_post("/v1/embeddings", _Embeddings(encoder))
    return app


class _Embeddings:
    """Handler of requests text by text, so that a question does not wait for the whole of another request's list."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(1, "encoder")

    async def __call__(self, request: web.Request) -> web.Response:
        body = await read_body(request, MODEL)
        texts, encode = _texts(body), _encoding(body)
        loop = asyncio.get_running_loop()
        rows, tokens = [], 0
        for index, text in enumerate(texts):
            vector, count = await loop.run_in_executor(self._thread, self._encoder.embed, text)
            rows.append({"object": "embedding", "index": index, "embedding": encode(vector)})
            tokens += count
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_response({"object": "list", "data": rows, "model": MODEL, "usage": usage})


def _texts(body: dict[str, Any]) -> list[str]:
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if (
        not isinstance(texts, list)
        or not 0 < len(texts) <= _MAX_TEXTS
        or not all(isinstance(text, str) for text in texts)
    ):
        raise BadRequest(f"input must be a text or a list of 1 to {_MAX_TEXTS} texts", param="input")
    return texts


def _encoding(body: dict[str, Any]) -> Any:
    match body.get("encoding_format", "float"):
        case "float":
            return _as_list
        case "base64":
            return _as_base64
    raise BadRequest("encoding_format must be float or base64", param="encoding_format")


def _as_list(vector: Floats) -> list[float]:
    return [round(number, 6) for number in vector.tolist()]


def _as_base64(vector: Floats) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
