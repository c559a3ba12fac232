"""The memory finds what a question means, by the local embedding model and the product's own search."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from django.utils import timezone
from pytest_django import Settings

from adiuva import llm
from adiuva.core import db
from bench.paraphrases import PARAPHRASES
from memory.entry_embedding import embed_missing
from memory.search import search
from tests.factories import Person
from tests.local_embeddings.conftest import address
from tests.memory.factories import says, seen

__all__ = ["address"]  # a fixture


def found(user: uuid.UUID, question: str, vector: Sequence[float] | None) -> list[str]:
    hits = search(user_id=user, question=question, vector=vector, now=timezone.now(), limit=5)
    return [says(hit.entry) for hit in hits]


async def test_questions_in_other_words_and_languages_find_their_answers(
    address: str, person: Person, settings: Settings
) -> None:
    settings.EMBEDDING_MODEL = {"model": "local", "api_base": f"{address}/v1", "api_key": ""}
    for answer, _ in PARAPHRASES:
        await db.run(seen, person.id, answer, "notes")
    assert await embed_missing(person.id) == len(PARAPHRASES)
    vectors = await llm.embedding_model().embed([question for _, question in PARAPHRASES])
    await llm.aclose()

    firsts = first_by_meaning = in_five = 0
    for (answer, question), vector in zip(PARAPHRASES, vectors, strict=True):
        hits, by_meaning = (
            await db.run(found, person.id, question, vector),
            await db.run(found, person.id, "", vector),
        )
        firsts += hits[0] == answer
        first_by_meaning += by_meaning[0] == answer
        in_five += answer in hits
    assert in_five >= 0.85 * len(PARAPHRASES)
    assert firsts >= first_by_meaning

    # A name says little to the model; that one entry alone has it, does.
    (name,) = await llm.embedding_model().embed(["Okafor"])
    await llm.aclose()
    assert "Okafor" in (await db.run(found, person.id, "Okafor", name))[0]
