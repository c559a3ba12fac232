"""A user with very many vectors gets an index of their own, which goes when they do."""

from __future__ import annotations

import datetime as dt
import math
import uuid

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pgvector import HalfVector

from memory import entries, forgetting, recall, search, vector_indexes, vector_space
from memory.entries import BY_HAND
from memory.models import Embedding, Tier
from tests.factories import somebody


def indexes_of(user: uuid.UUID) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT indexname FROM pg_indexes WHERE starts_with(indexname, %s)", [f"memory_near_{user.hex}"]
        )
        return [name for (name,) in cursor.fetchall()]


def test_a_user_with_many_rows_gets_an_index_that_recall_uses_until_the_rows_are_gone(
    committed_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_indexes, "CREATE_FROM_ROWS", 30)
    monkeypatch.setattr(vector_indexes, "DROP_BELOW_ROWS", 20)
    user, few = somebody().id, somebody().id
    texts = [f"Anna {number} visits place {number * 7}" for number in range(30)]
    for owner, said in ((user, texts), (few, texts[:29])):
        for text in said:
            entries.remember(user_id=owner, tier=Tier.ASSOCIATIVE, content=text, source=BY_HAND)

    def nearest() -> list[uuid.UUID]:
        hits = search.search(
            user_id=user,
            question="",
            vector=vector_space.embed_now(texts[3], user),
            now=dt.datetime.now(dt.UTC),
            limit=10,
        )
        return [hit.entry.pk for hit in hits]

    exact = nearest()
    vector_indexes.maintain()
    [name] = indexes_of(user)
    assert indexes_of(few) == []
    assert vector_indexes.maintain() == (0, 0)
    with connection.cursor() as cursor:
        cursor.execute("SET enable_sort = off")  # of so few rows the planner would rather sort all
        try:
            with CaptureQueriesContext(connection) as queries:
                assert nearest() == exact
            cursor.execute(f"EXPLAIN {queries[0]['sql']}")
            assert name in str(cursor.fetchall())
        finally:
            cursor.execute("RESET enable_sort")
    monkeypatch.setattr(vector_indexes, "_cache", (-math.inf, frozenset()))
    assert vector_indexes.has_index(user) and not vector_indexes.has_index(few)
    forgetting.forget_everything(user_id=user)
    vector_indexes.maintain()
    assert indexes_of(user) == []
    assert vector_indexes.has_index(user)  # for a while: who asks is answered without it, too
    monkeypatch.setattr(vector_indexes, "_cache", (-math.inf, frozenset()))
    assert not vector_indexes.has_index(user)


def test_recall_uses_the_index_although_its_statement_is_prepared_for_other_users(
    committed_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_indexes, "CREATE_FROM_ROWS", 30)
    monkeypatch.setattr(vector_indexes, "DROP_BELOW_ROWS", 20)
    monkeypatch.setattr(vector_indexes, "_cache", (-math.inf, frozenset()))
    user = somebody().id
    texts = [f"Anna {number} visits place {number * 7}" for number in range(30)]
    for text in texts:
        entries.remember(user_id=user, tier=Tier.ASSOCIATIVE, content=text, source=BY_HAND)
    vector_indexes.maintain()
    [name] = indexes_of(user)

    def scans() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_force_next_flush()")
            cursor.execute("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = %s", [name])
            count: int = cursor.fetchone()[0]
        return count

    with connection.cursor() as cursor:
        cursor.execute("SET enable_sort = off")
    try:
        counts = [scans()]
        for text in texts[:8]:  # more than PostgreSQL plans anew of a prepared statement
            found = recall.recall(
                user_id=user,
                question="",
                vector=vector_space.embed_now(text, user),
                provider="acme",
                limit_tokens=500,
                now=dt.datetime.now(dt.UTC),
            )
            assert text in [known.content for known in found.entries]
            counts.append(scans())
        assert counts == sorted(set(counts))
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET enable_sort")
        forgetting.forget_everything(user_id=user)
        vector_indexes.maintain()


def test_users_are_counted_without_a_look_at_their_vectors(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        counting = {"space": "any", "least": vector_indexes.DROP_BELOW_ROWS, "most": 100}
        cursor.execute(f"EXPLAIN {vector_indexes._COUNTS}", counting)
        plan = [line.strip() for (line,) in cursor.fetchall()]
    scans = [line for line in plan if " on memory_embedding" in line]
    assert [line for line in scans if "Index Only Scan using embeddings_of_user" in line], plan


def test_vectors_of_different_dimensions_are_counted_apart(
    committed_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_indexes, "CREATE_FROM_ROWS", 8)
    monkeypatch.setattr(vector_indexes, "DROP_BELOW_ROWS", 6)
    user = somebody().id
    made = [
        entries.remember(
            user_id=user, tier=Tier.ASSOCIATIVE, content=f"Anna visits place {number * 7}", source=BY_HAND
        )
        for number in range(10)
    ]
    rows = Embedding.objects.filter(user_id=user)
    assert rows.count() == len(made)
    shorter = list(rows.values_list("pk", flat=True)[:5])
    Embedding.objects.filter(pk__in=shorter).update(vector=HalfVector([0.5, 0.25]))
    vector_indexes.maintain()
    assert indexes_of(user) == []
    Embedding.objects.filter(pk__in=rows.values_list("pk", flat=True)).update(vector=HalfVector([0.5, 0.25]))
    vector_indexes.maintain()
    assert len(indexes_of(user)) == 1
    rows.delete()
    vector_indexes.maintain()
    assert indexes_of(user) == []
