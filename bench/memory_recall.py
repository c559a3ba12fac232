"""Memory recall for users with 10,000 and 200 entries, among 1,000 others: `python -m bench.memory_recall [OTHERS]`

Recall reads all tiers in one query and unseals them; it is measured in alternating rounds with four ORM queries. Its
nearest ten are checked against a scan that shares no code with the query. Computing the question's vector is not part
of the figures.
"""

from __future__ import annotations

import datetime as dt
import operator
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from bench.harness import Stopwatch, bench_servers, median, record, show

OTHERS: Final = 1_000
ENTRIES_OF_OTHERS: Final = 200
MANY, FEW = 10_000, 200
ROUNDS: Final = 100
AT_A_TIME: Final = 10  # of each way, by turns
QUESTIONS: Final = 40  # that the nearest ten are counted of
LIMIT_TOKENS: Final = 1_500
_PATTERNS: Final = 0.005  # of all entries
_SYLLABLES: Final = [
    first + second for first in "bdfgklmnprstv" for second in ("a", "e", "i", "o", "u", "an", "el")
]


class Language:
    """Random sentences of invented words, distributed by Zipf's law as words are."""

    def __init__(self, seed: int, words: int = 6_000) -> None:
        self.random = random.Random(seed)
        found: dict[str, None] = {}
        while len(found) < words:
            found["".join(self.random.choices(_SYLLABLES, k=self.random.randint(1, 4)))] = None
        self.words = list(found)
        self.weights = [1 / (rank + 3) for rank in range(words)]

    def sentence(self, least: int = 6, most: int = 24) -> str:
        words = self.random.choices(self.words, self.weights, k=self.random.randint(least, most))
        return f"{' '.join(words)}.".capitalize()


def new_user() -> UUID:
    from adiuva.accounts.models import User

    return User.objects.create(email=f"{uuid4().hex}@example.com", password="!").pk


def fill(user_id: UUID, entries: int, language: Language) -> None:
    """Create entries of all tiers as the product stores them; some are superseded."""
    from django.db import connection

    from adiuva.accounts.keys import cipher_for
    from adiuva.llm import embedding_model
    from memory import text_embedding
    from memory.entry_content import EntryContent, set_content
    from memory.models import Embedding, Entry, Memory, Tier

    cipher = cipher_for(user_id)
    Memory.objects.get_or_create(pk=user_id)
    core, patterns = min(60, entries // 5), max(3, int(entries * _PATTERNS))
    tiers = [Tier.CORE] * core + [Tier.PROACTIVE] * patterns
    tiers += [Tier.EPISODIC] * (entries // 10)
    tiers += [Tier.ASSOCIATIVE] * (entries - len(tiers))
    now = dt.datetime.now(dt.UTC)
    made, vectors = [], []
    for number, tier in enumerate(tiers):
        content = EntryContent(language.sentence(), f"key {number}" if tier == Tier.CORE else None)
        since = now - dt.timedelta(minutes=language.random.randint(1, 500_000))
        entry = Entry(
            user_id=user_id,
            tier=tier,
            valid_from=since,
            valid_to=since if tier == Tier.ASSOCIATIVE and number % 50 == 0 else None,
            confidence=language.random.random() if tier == Tier.PROACTIVE else None,
            began_at=since if tier == Tier.EPISODIC else None,
            ended_at=since if tier == Tier.EPISODIC else None,
            uses=language.random.randint(0, 20),
        )
        set_content(entry, content, cipher)
        made.append(entry)
        if entry.valid_to is None:
            vector = text_embedding.embed_now(content.searchable_text, user_id)
            vectors.append(
                Embedding(
                    entry=entry,
                    user_id=user_id,
                    tier=tier,
                    embedding_model=embedding_model().name,
                    vector=vector,
                )
            )
    language.random.shuffle(made)
    Entry.objects.bulk_create(made, batch_size=1_000)
    Embedding.objects.bulk_create(vectors, batch_size=1_000)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE memory_entry, memory_embedding")


# The other users' entries only have to exist, so SQL makes them, with the vectors of a few hundred sentences.
_OTHERS: Final = """
WITH person AS MATERIALIZED (SELECT id FROM accounts_user WHERE email LIKE 'other-%%'),
made AS (
    INSERT INTO memory_entry
        (id, user_id, tier, sealed, fingerprint, terms, derived, proposed, uses, valid_from)
    SELECT gen_random_uuid(), person.id,
        CASE WHEN number %% 10 = 0 THEN 'episodic' ELSE 'associative' END,
        decode(repeat(md5(number::text), 8), 'hex'), uuid_send(gen_random_uuid()),
        ARRAY(SELECT hashtextextended(person.id::text || word, 0)
              FROM generate_series(number, number + 15) AS word),
        false, false, 0, now() - number * interval '1 hour'
    FROM generate_series(1, %(entries)s) AS number CROSS JOIN person
    RETURNING id, user_id, tier
)
INSERT INTO memory_embedding (entry_id, user_id, tier, embedding_model, vector, bits)
SELECT id, user_id, tier, 'lexical', (%(vectors)s::text[])[number]::halfvec, (%(bits)s::text[])[number]::bit(1024)
FROM (SELECT id, user_id, tier, 1 + abs(hashtext(id::text)) %% %(count)s AS number FROM made) AS made
"""


def fill_others(language: Language, others: int) -> None:
    from django.db import connection

    from adiuva.accounts.models import User
    from adiuva.core import lexical_embedding
    from memory.sign_bits import sign_bits

    User.objects.bulk_create(
        [User(email=f"other-{number}@example.com", password="!") for number in range(others)]
    )
    vectors = [lexical_embedding.embed(language.sentence()) for _ in range(300)]
    made: dict[str, Any] = {
        "vectors": list(map(str, vectors)),
        "bits": list(map(sign_bits, vectors)),
        "count": len(vectors),
    }
    with connection.cursor() as cursor:
        cursor.execute(_OTHERS, made | {"entries": ENTRIES_OF_OTHERS})


def recalled(
    user_id: UUID, question: str, vector: list[float], limit_tokens: int = LIMIT_TOKENS
) -> list[UUID]:
    from memory.recall import recall

    found = recall(
        user_id=user_id,
        question=question,
        vector=vector,
        provider="somebody",
        limit_tokens=limit_tokens,
        now=dt.datetime.now(dt.UTC),
    )
    return [known.id for known in found.entries]


def recall_through_orm(user_id: UUID, vector: list[float]) -> int:
    """The obvious implementation: one ORM query for each tier, by vector alone; everything found is unsealed."""
    from pgvector.django import CosineDistance

    from adiuva.accounts.keys import cipher_for
    from memory.entry_content import unseal_entry
    from memory.models import Entry, Memory, Tier

    Memory.objects.get(pk=user_id)
    holding = Entry.objects.of(user_id).current()
    cipher = cipher_for(user_id)
    found = [
        *holding.filter(tier=Tier.CORE),
        *holding.filter(tier=Tier.ASSOCIATIVE, embedding__embedding_model="lexical").order_by(
            CosineDistance("embedding__vector", vector)
        )[:12],
        *holding.filter(tier=Tier.EPISODIC)[:3],
        *holding.filter(tier=Tier.PROACTIVE, confidence__gte=0.6)[:12],
    ]
    return len([unseal_entry(entry, cipher) for entry in found])


def nearest_ten(user_id: UUID, questions: list[list[float]]) -> list[set[UUID]]:
    """The exact nearest ten, computed here by comparing all vectors."""
    from memory.models import Embedding, Tier

    rows = Embedding.objects.filter(
        user_id=user_id, entry__tier=Tier.ASSOCIATIVE, entry__valid_to__isnull=True
    ).values_list("pk", "vector")
    there = [(key, list(vector)) for key, vector in rows]
    found = []
    for asked in questions:
        products = [(sum(map(operator.mul, asked, vector)), key) for key, vector in there]
        found.append({key for _, key in sorted(products, reverse=True)[:10]})
    return found


def cpu_of_database() -> Callable[[], float]:
    """Returns a function that reads the CPU seconds used by this connection's PostgreSQL process."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        place = Path(f"/proc/{cursor.fetchone()[0]}/schedstat")
    return lambda: int(place.read_text().split()[0]) / 1e9


def measure(user_id: UUID, language: Language, entries: int, aim: float) -> None:
    from memory import text_embedding

    in_database = cpu_of_database()
    ours, cpu, orm, cpu_of_orm = [], [], [], []

    def time_recall(question: str, vector: list[float]) -> None:
        began = in_database()
        with Stopwatch() as watch:
            recalled(user_id, question, vector)
        ours.append(watch.wall * 1000)
        cpu.append((watch.cpu + in_database() - began) * 1000)

    def time_orm(_: str, vector: list[float]) -> None:
        began = in_database()
        with Stopwatch() as watch:
            recall_through_orm(user_id, vector)
        orm.append(watch.wall * 1000)
        cpu_of_orm.append((watch.cpu + in_database() - began) * 1000)

    for _ in range(ROUNDS // AT_A_TIME):
        questions = [language.sentence(6, 12) for _ in range(AT_A_TIME)]
        for way in (time_recall, time_orm):
            for question in questions:
                way(question, text_embedding.embed_now(question, user_id) or [])
    show(
        "recall of all tiers, unsealed; four queries of the ORM", f"{median(ours):.1f}, {median(orm):.1f} ms"
    )
    name, mine, other = "four queries of the ORM", _by_turns(cpu), _by_turns(cpu_of_orm)
    record(
        f"of {entries:,} entries: CPU, here and in PostgreSQL", mine, "ms", beside=other, name=name, most=aim
    )


def _by_turns(values: list[float]) -> list[float]:
    return [median(values[at : at + AT_A_TIME]) for at in range(0, len(values), AT_A_TIME)]


def main(others: int = OTHERS) -> None:
    from memory import text_embedding

    language = Language(1)
    with Stopwatch() as watch:
        fill_others(language, others)
        many, few = new_user(), new_user()
        fill(many, MANY, language)
        fill(few, FEW, language)
    print(
        f"Recall beside {others:,} users with {ENTRIES_OF_OTHERS} entries each (made in {watch.wall:.0f} s)"
    )
    for user_id, entries, aim in ((many, MANY, 4), (few, FEW, 1.2)):
        print(f"  {entries:,} entries")
        measure(user_id, language, entries, aim)
    for user_id, entries, aim in ((many, MANY, 0.99), (few, FEW, 1.0)):
        questions = [
            text_embedding.embed_now(language.sentence(6, 12), user_id) or [] for _ in range(QUESTIONS)
        ]
        hits = sum(
            len(nearest & set(recalled(user_id, "", vector, limit_tokens=100_000)))
            for nearest, vector in zip(nearest_ten(user_id, questions), questions, strict=True)
        )
        what = f"of {entries:,} entries: share of the nearest ten, by an exact scan, that is recalled"
        record(what, hits / (10 * QUESTIONS), least=aim)


if __name__ == "__main__":
    with bench_servers():
        main(*map(int, sys.argv[1:]))
