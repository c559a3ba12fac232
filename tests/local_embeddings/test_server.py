"""The local embedding model behind the OpenAI HTTP API, called as any other provider."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import Any

import aiohttp
import pytest

from adiuva import llm
from adiuva.local_embeddings import DIMENSIONS, MODEL


async def embed(address: str, *texts: str) -> list[list[float]]:
    model = llm.embedding_model({"model": "local", "api_base": f"{address}/v1"})
    try:
        return await model.embed(texts)
    finally:
        await llm.aclose()


def closeness(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_the_same_in_other_words_and_languages_is_closer_than_shared_words(address: str) -> None:
    meant, english, german, unlike = await embed(
        address,
        "How much do I charge?",
        "The hourly rate is 95 euros.",
        "Der Stundensatz beträgt 95 Euro.",
        "The daily rain is 95 millimetres.",
    )
    assert len(meant) == DIMENSIONS and closeness(meant, meant) == pytest.approx(1, abs=1e-4)
    assert closeness(meant, english) > closeness(meant, unlike)
    assert closeness(meant, german) > closeness(meant, unlike)
    assert closeness(english, german) > closeness(english, unlike)


async def test_vectors_are_those_of_the_models_own_engine(address: str) -> None:
    """Closeness of pairs of texts as the engine computes it that comes with the weights."""
    texts = ["What do I charge an hour?", "Mein Stundensatz beträgt 80 Euro.", "日本語のテキストです。"]
    one, two, three = await embed(address, *texts)
    assert closeness(one, two) == pytest.approx(0.8484, abs=0.002)
    assert closeness(one, three) == pytest.approx(0.7804, abs=0.002)


async def test_nothing_leaves_this_machine_and_the_space_has_a_name_of_its_own() -> None:
    model = llm.embedding_model({"model": "local"})
    assert (model.name, model.provider) == (MODEL, "")


@pytest.mark.parametrize(
    "text", ["", " ", "\ud800", "\x00", "a" * 20_000, "\N{GRINNING FACE}" * 500, "ﬁ\u0301\u200b"]
)
async def test_any_text_has_a_vector(address: str, text: str) -> None:
    (vector,) = await embed(address, text)
    assert closeness(vector, vector) == pytest.approx(1, abs=1e-4)


async def test_what_is_said_late_in_a_long_text_counts_too(address: str) -> None:
    start = "The weather in the mountains was fine. " * 30
    plain, with_end = await embed(address, start * 2, start + "The hourly rate is 95 euros. " * 40)
    (question,) = await embed(address, "How much do I charge?")
    assert closeness(question, with_end) > closeness(question, plain)


async def test_a_question_does_not_wait_for_a_long_list(address: str) -> None:
    long = asyncio.create_task(embed(address, *["a text of a few words"] * 300))
    await asyncio.sleep(0.3)
    await embed(address, "a question")
    assert not long.done()
    long.cancel()
    await asyncio.gather(long, return_exceptions=True)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        ({"model": "gpt-9", "input": "x"}, 404, "model"),
        ({"model": MODEL, "input": 5}, 400, "input"),
        ({"model": MODEL, "input": []}, 400, "input"),
        ({"model": MODEL, "input": ["x"] * 513}, 400, "input"),
        ({"model": MODEL, "input": "x", "encoding_format": "hex"}, 400, "encoding_format"),
    ],
)
async def test_a_bad_request_is_refused_in_openais_shape(
    address: str, body: Any, status: int, param: str | None
) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{address}/v1/embeddings", data=raw) as answer,
    ):
        assert answer.status == status
        error = (await answer.json())["error"]
    assert error["message"] and error["param"] == param and error["type"] == "invalid_request_error"


async def test_openais_own_client_gets_base64(address: str) -> None:
    """What that client asks for unless told otherwise: float32, little-endian."""
    body = {"model": MODEL, "input": "The hourly rate", "encoding_format": "base64"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{address}/v1/embeddings", json=body) as answer,
    ):
        found = await answer.json()
    packed = base64.b64decode(found["data"][0]["embedding"])
    (plain,) = await embed(address, "The hourly rate")
    assert list(struct.unpack(f"<{DIMENSIONS}f", packed)) == pytest.approx(plain, abs=1e-5)
    assert found["usage"]["total_tokens"] > 3
