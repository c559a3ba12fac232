"""Of a user with many vectors, only those are compared whose bits are nearest."""

from __future__ import annotations

import datetime as dt
import uuid

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pgvector import HalfVector

from adiuva.accounts.keys import cipher_for
from memory import entries, ranking, recall, text_embedding
from memory.entries import BY_HAND
from memory.models import Embedding, Tier
from memory.sign_bits import question_bits, sign_bits
from memory.terms import hash_terms
from tests.factories import somebody

TEXTS = [f"Anna {number} visits place {number * 7}" for number in range(40)]


@pytest.fixture(scope="module")
def with_many(committed_db: str) -> uuid.UUID:
    """Whose entries no test changes."""
    return with_entries(TEXTS)


@pytest.fixture
def user(with_many: uuid.UUID, monkeypatch: pytest.MonkeyPatch) -> uuid.UUID:
    monkeypatch.setattr(ranking, "_MANY", len(TEXTS))
    monkeypatch.setattr(ranking, "_COMPARED", 20)
    monkeypatch.setattr(recall, "_sizes", {})
    return with_many


def with_entries(texts: list[str]) -> uuid.UUID:
    owner = somebody().id
    for text in texts:
        entries.remember(user_id=owner, tier=Tier.ASSOCIATIVE, content=text, source=BY_HAND)
    return owner


def nearest(user_id: uuid.UUID, text: str, most: int = 3) -> list[str]:
    found = recall.recall(
        user_id=user_id,
        question="",
        vector=text_embedding.embed_now(text, user_id),
        provider="acme",
        limit_tokens=500,
        now=dt.datetime.now(dt.UTC),
    )
    return [known.content for known in found.entries][:most]


def test_the_same_is_recalled_once_a_process_knows_that_a_user_has_many(user: uuid.UUID) -> None:
    few = with_entries(TEXTS[:-1])
    nearest(few, TEXTS[3])
    exact = [nearest(user, text)[0] for text in TEXTS[:1]]
    assert {key: size.vectors for key, size in recall._sizes.items()} == {
        user: len(TEXTS),
        few: len(TEXTS) - 1,
    }
    with CaptureQueriesContext(connection) as queries:
        assert [nearest(user, text)[0] for text in TEXTS[:1]] == exact == TEXTS[:1]
        assert [nearest(user, text)[0] for text in TEXTS] == TEXTS
        assert nearest(few, TEXTS[3])[0] == TEXTS[3]
    by_bits = ["bits <~>" in query["sql"] for query in queries]
    assert by_bits == [True] * (len(TEXTS) + 1) + [False]


@pytest.mark.parametrize(
    "vector", [[0.0] * 512, [float("nan")] * 512, [float("inf")] * 512, [1e30] * 512, []]
)
def test_an_unusable_vector_leaves_recall_to_words(user: uuid.UUID, vector: list[float]) -> None:
    nearest(user, TEXTS[0])
    found = recall.recall(
        user_id=user,
        question=TEXTS[20],
        vector=vector,
        provider="acme",
        limit_tokens=500,
        now=dt.datetime.now(dt.UTC),
    )
    assert found.entries[0].content == TEXTS[20]


def test_what_a_process_knows_of_a_user_is_asked_again(
    user: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "_NOTED_S", -1.0)
    with CaptureQueriesContext(connection) as queries:
        assert [nearest(user, TEXTS[1])[0] for _ in range(2)] == [TEXTS[1]] * 2
    assert not any("bits <~>" in query["sql"] for query in queries)


def test_common_words_are_looked_up_only_where_a_question_has_no_others(
    user: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "_ENTRIES_OF_COMMON_WORD", len(TEXTS))
    common = ranking.common_terms(user, len(TEXTS))
    cipher = cipher_for(user)
    assert common == set(hash_terms("Anna visits place", cipher))

    def looked_up(question: str) -> list[int]:
        found = ranking.parameters(
            user,
            question,
            None,
            list(Tier),
            per_tier=1,
            max_near=1,
            now=dt.datetime.now(dt.UTC),
            common=common,
        )
        return [int(term) for term in found["terms"].strip("{}").split(",")]

    assert looked_up("Anna will fly to Turin") == hash_terms("will fly to Turin", cipher)
    assert set(looked_up("Anna visits")) == set(hash_terms("Anna visits", cipher))
    nearest(user, TEXTS[0])
    assert recall._sizes[user].common == common


@pytest.mark.usefixtures("committed_db")
def test_an_entry_that_has_ended_has_no_vector_and_takes_no_place() -> None:
    user = with_entries(TEXTS[:8])
    ended = Embedding.objects.filter(user_id=user).values_list("entry_id", flat=True)[:5]
    gone = list(ended)
    assert entries.end_validity(user_id=user, ids=gone) == 5
    assert not Embedding.objects.filter(entry_id__in=gone).exists()
    assert set(Embedding.objects.filter(user_id=user).values_list("tier", flat=True)) == {Tier.ASSOCIATIVE}


def test_the_bits_of_all_are_read_in_the_index_alone(user: uuid.UUID) -> None:
    bits, inverted = question_bits([1.0])
    with connection.cursor() as cursor:
        cursor.execute("VACUUM (ANALYZE) memory_embedding")  # as autovacuum does; the planner goes by it
        cursor.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        try:
            cursor.execute(
                f"EXPLAIN SELECT entry_id, vector FROM {ranking._NEAREST_BITS}",
                {
                    "user": user,
                    "space": text_embedding.current_space(),
                    "bits": bits,
                    "inverted": inverted,
                    "sampled": 2,
                    "nearest_of_sample": 2,
                    "compared": 20,
                },
            )
            plan = [line for (line,) in cursor.fetchall()]
        finally:
            cursor.execute("RESET enable_seqscan; RESET enable_bitmapscan")
    scans = [place for place, line in enumerate(plan) if "Index Only Scan using embeddings_of_user" in line]
    assert any("Filter:" in line and "<~>" in line for scan in scans for line in plan[scan + 1 : scan + 3]), (
        plan
    )
    # By which index the sample and the vectors are found depends on what the planner knows of the table.
    assert any("Index Cond:" in line and "(entry_id = ANY" in line for line in plan), plan


def test_bits_are_those_of_the_vector_as_it_is_stored(user: uuid.UUID) -> None:
    """Where components cancel each other out, rounding decides the sign."""
    for row in Embedding.objects.filter(user_id=user):
        assert row.bits == sign_bits(HalfVector(row.vector).to_list())
    row = Embedding.objects.get(user_id=with_entries(TEXTS[:1]))
    row.vector = [-value for value in row.vector]
    row.save()
    row.refresh_from_db()
    assert row.bits == sign_bits(HalfVector(row.vector).to_list())
