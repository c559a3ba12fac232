"""Hit rate of the memory's search by meaning: `python -m bench.memory_meaning`

Sixty entries of one user in four languages are searched with sixty questions in other words, through the product's own
search: by the words alone, by the vectors of the local embedding model alone, and by both as the product does it; and
beside it with the lexical vectors that are used where there is no model. Also the cost of a text.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from bench.harness import BenchServers, Stopwatch, bench_servers, record
from bench.memory_recall import new_user
from bench.paraphrases import PARAPHRASES

_FIVE: Final = 5
_TIMED_TEXTS: Final = 20


def main(servers: BenchServers) -> None:
    from django.conf import settings

    from adiuva.embedded.ports import free_port
    from adiuva.local_embeddings import CONFIGURED_NAME
    from bench.harness import cpu_s, listens

    port = free_port()
    child = servers.run("embeddings", "-m", "adiuva.local_embeddings", "--port", str(port))
    child.wait_until(lambda: listens(port), within_s=60)
    print(f"Of {len(PARAPHRASES)} paraphrases")
    for model in ("lexical", CONFIGURED_NAME):
        settings.EMBEDDING_MODEL = {"model": model, "api_base": f"http://127.0.0.1:{port}/v1", "api_key": ""}
        before = cpu_s(child)
        asyncio.run(_compare(model))
        if model == CONFIGURED_NAME:
            texts = 2 * len(PARAPHRASES)
            record("CPU of the local model a text", (cpu_s(child) - before) / texts * 1000, "ms")
    asyncio.run(_time_alone())


async def _compare(model: str) -> None:
    from adiuva import llm
    from adiuva.core import db

    user_id = await db.run(new_user)
    await db.run(_remember, user_id)
    embeddings = llm.embedding_model()
    passages = await embeddings.embed([text for text, _ in PARAPHRASES])
    await db.run(_keep_vectors, user_id, passages)
    questions = await embeddings.embed([question for _, question in PARAPHRASES])
    nothing: list[None] = [None] * len(questions)
    await _show(user_id, f"{model}: words alone", [text for _, text in PARAPHRASES], nothing)
    await _show(user_id, f"{model}: vectors alone", [""] * len(questions), questions)
    await _show(
        user_id, f"{model}: both, as the product searches", [text for _, text in PARAPHRASES], questions
    )
    await llm.aclose()


async def _show(
    user_id: UUID, what: str, texts: Sequence[str], vectors: Sequence[Sequence[float] | None]
) -> None:
    from adiuva.core import db

    places = [
        await db.run(_place, user_id, index, text, vector)
        for index, (text, vector) in enumerate(zip(texts, vectors, strict=True))
    ]
    first, five = sum(place == 0 for place in places), sum(place < _FIVE for place in places)
    record(f"{what}: first place", first)
    record(f"{what}: among the first five", five)


def _remember(user_id: UUID) -> None:
    from adiuva.accounts.keys import cipher_for
    from memory.entry_content import EntryContent, set_content
    from memory.models import Entry, Memory, Tier

    Memory.objects.get_or_create(pk=user_id)
    now = dt.datetime.now(dt.UTC)
    for text, _ in PARAPHRASES:
        entry = Entry(user_id=user_id, tier=Tier.ASSOCIATIVE, valid_from=now)
        set_content(entry, EntryContent(text, None), cipher_for(user_id))
        entry.save(force_insert=True)
        _entries.append(entry.pk)


_entries: list[UUID] = []


def _keep_vectors(user_id: UUID, vectors: Sequence[Sequence[float]]) -> None:
    from adiuva import llm
    from memory.models import Embedding, Entry

    name = llm.embedding_model().name
    for pk, vector in zip(_entries[-len(PARAPHRASES) :], vectors, strict=True):
        entry = Entry.objects.get(pk=pk)
        Embedding.objects.create(
            entry=entry, user_id=user_id, tier=entry.tier, embedding_model=name, vector=list(vector)
        )


def _place(user_id: UUID, index: int, question: str, vector: Sequence[float] | None) -> int:
    """The rank at which the search finds the entry that answers a question; behind all others if it does not."""
    from memory.search import search

    hits = search(user_id=user_id, question=question, vector=vector, now=dt.datetime.now(dt.UTC), limit=20)
    wanted = _entries[-len(PARAPHRASES) :][index]
    return next((place for place, hit in enumerate(hits) if hit.entry.pk == wanted), len(PARAPHRASES))


async def _time_alone() -> None:
    from adiuva import llm

    took = []
    for _, question in PARAPHRASES[:_TIMED_TEXTS]:
        with Stopwatch() as watch:
            await llm.embedding_model().embed([question])
        took.append(watch.wall * 1000)
    record("a question's vector, one alone", took, "ms")
    await llm.aclose()


if __name__ == "__main__":
    with bench_servers() as started:
        main(started)
