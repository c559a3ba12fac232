"""Recall from the memory: by words and by vectors, of this user alone, within a budget."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from adiuva.accounts.keys import cipher_for
from memory import entries, entry_content, recall, search, text_embedding
from memory.entries import BY_HAND, EntryDetails
from memory.models import Embedding, Entry, Memory, Receipt, Tier
from memory.receipts import TurnReader, write_turn_receipt
from tests.factories import somebody

pytestmark = pytest.mark.django_db(transaction=False)

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def user() -> uuid.UUID:
    return somebody().id


def embed(user: uuid.UUID, text: str) -> list[float] | None:
    return text_embedding.embed_now(text, user)


def put(user: uuid.UUID, tier: Tier, content: str, *, key: str | None = None, **more: Any) -> Entry:
    return entries.remember(
        user_id=user, tier=tier, content=content, key=key, source=BY_HAND, details=EntryDetails(**more)
    ).entry


def seen(user: uuid.UUID, content: str, **more: Any) -> Entry:
    return put(user, Tier.ASSOCIATIVE, content, **more)


def recalled(
    user: uuid.UUID,
    question: str,
    *,
    vector: list[float] | None = None,
    provider: str = "acme",
    limit_tokens: int = 1_000,
) -> recall.RecallResult:
    return recall.recall(
        user_id=user, question=question, vector=vector, provider=provider, limit_tokens=limit_tokens, now=NOW
    )


def says(user: uuid.UUID, question: str, **more: Any) -> list[str]:
    return [known.content for known in recalled(user, question, **more).entries]


def found(user: uuid.UUID, question: str, **more: Any) -> list[str]:
    more.setdefault("vector", None)
    hits = search.search(user_id=user, question=question, now=NOW, **more)
    return [entry_content.unseal_entry(hit.entry, cipher_for(user)).content for hit in hits]


# ── What is found ───────────────────────────────────────────────────────────────────────────────────────


def test_one_query_recalls_all_tiers_with_switch_and_policy(user: uuid.UUID) -> None:
    put(user, Tier.CORE, "tea", key="drink")
    seen(user, "Anna moves to Turin in March.")
    put(user, Tier.EPISODIC, "The offer for the harbour was written.", began_at=NOW, ended_at=NOW)
    put(user, Tier.PROACTIVE, "Invoices go out on Fridays.", confidence=0.9)
    put(user, Tier.PROACTIVE, "Mondays are for Anna.", confidence=recall.MIN_PATTERN_CONFIDENCE - 0.1)
    statements = []

    def listen(execute: Any, sql: str, *args: Any) -> Any:
        statements.append(sql)
        return execute(sql, *args)

    with connection.execute_wrapper(listen):
        known = recalled(user, "When does Anna move?", vector=embed(user, "When does Anna move?")).entries
    assert sum("memory_entry" in sql for sql in statements) == 1  # others may be for the key and the indexes
    assert next(one.tier for one in known) == Tier.CORE
    assert {one.content for one in known} == {
        "tea",
        "Anna moves to Turin in March.",
        "The offer for the harbour was written.",
        "Invoices go out on Fridays.",
    }
    assert [one.key for one in known if one.tier == Tier.CORE] == ["drink"]


def test_recall_is_planned_once_for_all_users_and_questions(user: uuid.UUID) -> None:
    other = somebody().id
    for owner, said in ((user, "Anna moves to Turin in March."), (other, "Bob likes boats.")):
        seen(owner, said)

    def planned() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%WITH fits%'")
            count: int = cursor.fetchone()[0]
        return count

    for _ in range(2):  # the first also asks how much the user has
        assert says(user, "Turin", vector=embed(user, "Turin")) == ["Anna moves to Turin in March."]
    before = planned()
    assert before >= 1
    assert says(other, "boats", vector=embed(other, "boats")) == ["Bob likes boats."]
    for number in range(8):  # PostgreSQL makes a plan of each for the first five
        assert says(user, f"Turin {number}", vector=embed(user, f"Turin {number}")) == [
            "Anna moves to Turin in March."
        ]
    assert planned() == before


def test_every_core_entry_that_fits_is_recalled_however_many_do_not(user: uuid.UUID) -> None:
    for number in range(12):
        put(user, Tier.CORE, f"{number} " + "long " * 200, key=f"long {number}")
    last = put(user, Tier.CORE, "tea", key="drink")  # the oldest is looked at last
    Entry.objects.filter(pk=last.pk).update(valid_from=NOW - dt.timedelta(days=2))
    assert says(user, "xyzzy", limit_tokens=50) == ["tea"]


def test_words_find_without_a_vector_and_a_rare_word_before_a_common_one(user: uuid.UUID) -> None:
    for number in range(20):
        seen(user, f"Meeting number {number} about the website")
    seen(user, "The website of Turin")
    seen(user, "Bob likes boats")
    assert found(user, "the Turin meeting", limit=1) == ["The website of Turin"]
    assert found(user, "meetings in turin")[0] == "The website of Turin"
    assert found(user, "boat") == []
    assert found(user, "bob") == ["Bob likes boats"]


def test_a_vector_finds_without_a_common_word(user: uuid.UUID) -> None:
    seen(user, "Bob likes boats")
    seen(user, "Turin in March")
    assert found(user, "xyzzy") == []
    # Nearly the same words: with some users' keys, parts of others meet in one place and cancel each other out.
    assert found(user, "xyzzy", vector=embed(user, "bob likes boating"), limit=1) == ["Bob likes boats"]
    assert says(user, "xyzzy", vector=embed(user, "bob likes boating"))[0] == "Bob likes boats"


def test_entries_found_by_words_and_vector_come_before_those_found_by_one(user: uuid.UUID) -> None:
    both = "Cleo paints the harbour"
    for text in ("The harbour at night", both, "Cleopatra painted harbours"):
        seen(user, text)
    assert found(user, "Cleo harbour", vector=embed(user, "Cleo paints"))[0] == both


def test_newer_and_more_used_entries_come_first_among_equals(user: uuid.UUID) -> None:
    old, new, used = (seen(user, f"Ada called {name}") for name in ("Eve", "Dan", "Fay"))
    Entry.objects.filter(pk=old.pk).update(valid_from=NOW - dt.timedelta(days=900))
    Entry.objects.filter(pk=used.pk).update(valid_from=NOW - dt.timedelta(days=900), uses=500)
    Entry.objects.filter(pk__in=[old.pk, new.pk, used.pk]).update(
        terms=Entry.objects.get(pk=new.pk).terms[:2]
    )
    order = found(user, "ada called")
    assert order.index("Ada called Dan") < 2 and order.index("Ada called Fay") < 2


def test_another_users_entries_are_never_found(user: uuid.UUID) -> None:
    other = somebody().id
    theirs = seen(other, "Anna moves to Turin")
    put(other, Tier.CORE, "coffee", key="drink")
    # Not even with this user's own words on them.
    mine = seen(user, "Anna stays")
    Entry.objects.filter(pk=theirs.pk).update(terms=mine.terms)
    question = "Anna Turin drink coffee"
    assert says(user, question, vector=embed(user, question)) == ["Anna stays"]
    assert found(user, question, vector=embed(user, question)) == ["Anna stays"]


def test_history_is_never_found(user: uuid.UUID) -> None:
    entry = seen(user, "Anna moves to Turin")
    entries.correct(entry=entry, content="Anna moves to Milan", source=BY_HAND)
    over = seen(user, "Anna lives in Turin")
    entries.end_validity(user_id=user, ids=[over.pk])
    put(user, Tier.CORE, "coffee", key="drink")
    put(user, Tier.CORE, "tea", key="drink")
    question = "Anna Turin coffee"
    assert set(says(user, question, vector=embed(user, question))) == {"Anna moves to Milan", "tea"}
    assert set(found(user, question, vector=embed(user, question))) <= {"Anna moves to Milan", "tea"}


@pytest.mark.parametrize("other", [{"embedding_model": "another"}, {"vector": [1.0] * 8}])
def test_vectors_of_another_space_are_never_compared(user: uuid.UUID, other: dict[str, Any]) -> None:
    entry = seen(user, "Bob likes boats")
    Embedding.objects.filter(pk=entry.pk).update(**other)
    assert found(user, "xyzzy", vector=embed(user, "Bob likes boats")) == []


@pytest.mark.parametrize("vector", [[0.0] * 512, [float("nan")] * 512, [1e30] * 512, []])
def test_an_unusable_vector_leaves_the_search_to_words(user: uuid.UUID, vector: list[float]) -> None:
    seen(user, "Bob likes boats")
    assert found(user, "bob", vector=vector) == ["Bob likes boats"]


def test_a_search_covers_only_the_requested_tiers(user: uuid.UUID) -> None:
    put(user, Tier.CORE, "Anna", key="partner")
    seen(user, "Anna moves")
    assert found(user, "Anna", tiers=[Tier.CORE]) == ["Anna"]
    assert found(user, "Anna", vector=embed(user, "Anna"), tiers=[Tier.ASSOCIATIVE]) == ["Anna moves"]


# ── What a turn gets of it ──────────────────────────────────────────────────────────────────────────────


def test_the_budget_is_kept_and_no_entry_is_cut(user: uuid.UUID) -> None:
    texts = {f"Anna {number} " + "and so on " * (3 * number) for number in range(1, 10)}
    for text in texts:
        seen(user, text)
    for tokens in (0, 10, 40, 100, 300):
        given = says(user, "Anna", limit_tokens=tokens)
        assert set(given) <= {text.strip() for text in texts}
        assert sum(map(len, given)) <= tokens * recall.CHARS_PER_TOKEN
    assert len(says(user, "Anna", limit_tokens=100)) > 1


def test_core_comes_first_within_the_budget(user: uuid.UUID) -> None:
    seen(user, "Anna " + "moves " * 20)
    put(user, Tier.CORE, "tea " * 20, key="drink")
    assert [one.tier for one in recalled(user, "Anna", limit_tokens=50).entries] == [Tier.CORE]


def test_withheld_tiers_are_not_recalled_and_are_named_only_if_they_have_entries(user: uuid.UUID) -> None:
    put(user, Tier.CORE, "tea", key="drink")
    seen(user, "Anna moves")
    policy = {Tier.ASSOCIATIVE: ["acme"], Tier.CORE: [], Tier.EPISODIC: []}
    Memory.objects.filter(pk=user).update(policy=policy)
    here = recalled(user, "Anna")
    assert ([one.content for one in here.entries], here.withheld) == (["Anna moves"], {Tier.CORE})
    there = recalled(user, "Anna", provider="other.example")
    assert (there.entries, there.withheld) == ([], {Tier.CORE, Tier.ASSOCIATIVE})
    assert len(recalled(user, "Anna", provider="").entries) == 2


def test_a_memory_that_is_off_or_empty_recalls_nothing(user: uuid.UUID) -> None:
    assert recalled(user, "Anna") == recall.RecallResult([], set())
    seen(user, "Anna moves")
    Memory.objects.filter(pk=user).update(enabled=False)
    assert recalled(user, "Anna", vector=embed(user, "Anna")) == recall.RecallResult([], set())


def test_a_row_with_a_broken_seal_is_skipped_and_logged_by_id(
    user: uuid.UUID, caplog: pytest.LogCaptureFixture
) -> None:
    entry = seen(user, "Anna moves to Turin")
    seen(user, "Anna lives in Milan")
    flipped = bytes(entry.sealed[:-1]) + bytes([entry.sealed[-1] ^ 1])
    Entry.objects.filter(pk=entry.pk).update(sealed=flipped)
    assert says(user, "Anna") == ["Anna lives in Milan"]
    assert str(entry.pk) in caplog.text
    assert "Turin" not in caplog.text


def test_a_receipt_names_the_entries_sent_and_counts_their_use(user: uuid.UUID) -> None:
    entry = seen(user, "Anna moves")
    given = recalled(user, "Anna")
    turn, place = uuid.uuid4(), uuid.uuid4()
    with CaptureQueriesContext(connection) as queries:
        write_turn_receipt(
            TurnReader(user, "acme", "openai/large", turn, place),
            [known.id for known in given.entries],
            given.withheld,
        )
    assert len(queries) == 1
    receipt = Receipt.objects.get(user_id=user)
    assert (receipt.entries, receipt.withheld, receipt.purpose) == ([entry.pk], [], Receipt.Purpose.TURN)
    assert (receipt.provider, receipt.model) == ("acme", "openai/large")
    assert (receipt.turn_id, receipt.conversation_id) == (turn, place)
    write_turn_receipt(
        TurnReader(user, "", "in-process", turn, None), [known.id for known in given.entries], given.withheld
    )
    assert Receipt.objects.filter(user_id=user).count() == 1
    entry.refresh_from_db()
    assert entry.uses == 2 and entry.used_at is not None
