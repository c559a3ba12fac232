"""Patterns: the model proposes them and names its evidence; what becomes of that is decided here.

A new pattern needs evidence from two sources and begins at FIRST. What confirms it raises its confidence once a visit,
what contradicts it halves it, each week without either takes a tenth, and below LEAST it goes. All of these need an
entry that is new since the last visit, and a confirmation a source that the pattern does not have yet, so that nothing
counts twice. Patterns that the user wrote or reworded are the user's: they are shown to the model and not touched.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from django.db import connection
from django.db.models import F, QuerySet
from django.db.models.expressions import Combinable
from django.db.models.functions import Now

from adiuva import llm
from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from adiuva.core.crypto import SealBroken, UserCipher
from adiuva.core.logging import log
from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.llm.structured import UnusableAnswer
from memory import entries, provider_policy, structured
from memory.entries import MemoryFull, SourceRef
from memory.episode_condensing import is_condensed
from memory.models import Entry, EntrySource, Memory, Receipt, SourceKind, Tier
from memory.terms import normalize

INITIAL_CONFIDENCE: Final = 0.4
CONFIRMATION_GAIN: Final = 0.3  # of what is missing to 1
CONTRADICTION_FACTOR: Final = 0.5
WEEKLY_FACTOR: Final = 0.9
MIN_CONFIDENCE: Final = 0.15

MAX_NEW_PATTERNS: Final = 10  # patterns, a visit
MAX_PATTERN_CHARS: Final = 300  # characters
_MOST_FRESH: Final = 80  # entries that are read at once
_MOST_BEFORE: Final = 40  # that were read before, so that what is new is seen beside them
_MOST_PATTERNS: Final = 60
_ENTRY_CHARS: Final = 600  # of an entry that the model gets to see
_OLDEST: Final = dt.timedelta(days=30)  # that is still news
_MOST_CLAIMS: Final = 200  # that are looked at
_FROM: Final = (Tier.ASSOCIATIVE, Tier.EPISODIC)

_LABELS: Final = {"type": "array", "items": {"type": "string"}}


def _claims(what: str) -> dict[str, Any]:
    item = {
        "type": "object",
        "properties": {what: {"type": "string"}, "evidence": _LABELS},
        "required": [what, "evidence"],
        "additionalProperties": False,
    }
    return {"type": "array", "items": item}


_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "new": _claims("content"),
        "confirmed": _claims("pattern"),
        "contradicted": _claims("pattern"),
    },
    "required": ["new", "confirmed", "contradicted"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class ShownText:
    """An entry as the model got it, the mark of what it says, and whether it is new since the last visit."""

    id: uuid.UUID
    mark: bytes
    text: str
    day: dt.date
    fresh: bool = False
    ours: bool = False  # a pattern that was found, not written by the user


@dataclass(frozen=True)
class PatternClaims:
    """By content and by label: the labels of the evidence."""

    new: Mapping[str, Collection[str]]
    confirmed: Mapping[str, Collection[str]]
    contradicted: Mapping[str, Collection[str]]


@dataclass
class PatternReview:
    """What was read, by label, and what the model said to it. `until`: what is newer was not read yet."""

    until: dt.datetime
    more: bool = False
    evidence: dict[str, ShownText] = field(default_factory=dict)
    patterns: dict[str, ShownText] = field(default_factory=dict)
    answer: PatternClaims | None = None


async def review(
    user_id: uuid.UUID, model: llm.ChatModel, *, since: dt.datetime | None, now: dt.datetime
) -> PatternReview:
    """What the model makes of what is new between the two; it is not asked when that is nothing. Raise a ModelError."""
    found = await db.run(_read, user_id, model, since, now)
    if found.evidence:
        shown = "\n".join(f"{label}: {read.text}" for label, read in found.patterns.items())
        given = "\n".join(f"{label} {read.day}: {read.text}" for label, read in found.evidence.items())
        found.answer = await structured.ask_or_none(
            model,
            prompt="patterns",
            material=f"{delimit_untrusted('patterns', shown)}\n\n{delimit_untrusted('entries', given)}",
            name="patterns",
            schema=_SCHEMA,
            read=_answer,
        )
    return found


def has_new_evidence(user_id: uuid.UUID, after: dt.datetime) -> bool:
    """Whether there is something that patterns could be found in since."""
    return _readable(user_id, _FROM).filter(updated_at__gt=after).exists()


# ── What is read ────────────────────────────────────────────────────────────────────────────────────────


def _readable(user_id: uuid.UUID, tiers: Iterable[str]) -> QuerySet[Entry]:
    """Condensed episodes were read in their parts."""
    return Entry.objects.of(user_id).current().filter(~is_condensed(), tier__in=tiers)


def _read(
    user_id: uuid.UUID, model: llm.ChatModel, since: dt.datetime | None, now: dt.datetime
) -> PatternReview:
    """What the model is to get, with a receipt for it."""
    found = PatternReview(until=now)
    memory = Memory.objects.filter(pk=user_id, enabled=True).first()
    if memory is None:
        return found
    allowed = provider_policy.readable_tiers(memory.policy, model.provider)
    tiers = [tier for tier in _FROM if tier in allowed]
    since = max(since or now - _OLDEST, now - _OLDEST)
    readable = _readable(user_id, tiers)
    fresh = list(
        readable.filter(updated_at__gt=since, updated_at__lte=now).order_by("updated_at", "pk")[
            : _MOST_FRESH + 1
        ]
    )
    if Tier.PROACTIVE not in allowed or not fresh:
        return found
    if len(fresh) > _MOST_FRESH:
        found.more = True
        fresh.pop()
        found.until = fresh[-1].updated_at
    before = list(readable.filter(updated_at__lte=since).order_by("-updated_at", "-pk")[:_MOST_BEFORE])
    cipher = cipher_for(user_id)
    found.evidence = _labelled("e", before[::-1], cipher) | _labelled(
        "e", fresh, cipher, first=len(before) + 1, fresh=True
    )
    patterns = Entry.objects.of(user_id).current().filter(tier=Tier.PROACTIVE)
    found.patterns = _labelled("p", patterns.order_by("-confidence", "pk")[:_MOST_PATTERNS], cipher)
    provider_policy.write_receipt(
        user_id=user_id,
        purpose=Receipt.Purpose.CONSOLIDATE,
        model=model,
        entries=[read.id for read in (*found.evidence.values(), *found.patterns.values())],
        withheld=[tier for tier in _FROM if tier not in allowed],
    )
    return found


def _labelled(
    letter: str, rows: Iterable[Entry], cipher: UserCipher, *, first: int = 1, fresh: bool = False
) -> dict[str, ShownText]:
    found = {}
    for number, row in enumerate(rows, first):
        try:
            content = entries.unseal_entry(row, cipher).content
        except SealBroken:
            log.error("memory.does_not_open", user_id=str(row.user_id), entry_id=str(row.pk))
            continue
        # In one line, so that no text can pass for a line of another entry.
        text = " ".join(content.split())[:_ENTRY_CHARS]
        day = (row.began_at or row.valid_from).date()
        found[f"{letter}{number}"] = ShownText(row.pk, bytes(row.fingerprint), text, day, fresh, row.derived)
    return found


# ── What is answered ────────────────────────────────────────────────────────────────────────────────────


def _answer(value: Any) -> PatternClaims:
    """What can be used of an answer. Labels may still be unknown."""
    if not isinstance(value, dict):
        raise UnusableAnswer(
            "the answer must be one object with the lists `new`, `confirmed`, `contradicted`."
        )
    lists = {name: value.get(name, []) for name in ("new", "confirmed", "contradicted")}
    for name, claims in lists.items():
        if not isinstance(claims, list):
            raise UnusableAnswer(f"`{name}` must be a list.")
    return PatternClaims(
        new=_by_what(lists["new"], "content"),
        confirmed=_by_what(lists["confirmed"], "pattern"),
        contradicted=_by_what(lists["contradicted"], "pattern"),
    )


def _by_what(claims: list[Any], what: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for claim in claims[:_MOST_CLAIMS]:
        if not isinstance(claim, dict) or not isinstance(claim.get("evidence"), list):
            continue
        said = claim.get(what)
        if isinstance(said, str) and "\0" not in said and 0 < len(said.strip()) <= MAX_PATTERN_CHARS:
            found[said.strip()].update(
                label for label in claim["evidence"][:_MOST_CLAIMS] if isinstance(label, str)
            )
    return found


# ── What becomes of it: in one transaction, the memory locked ───────────────────────────────────────────


def is_unchanged(user_id: uuid.UUID, found: PatternReview) -> bool:
    """Whether all that the model read still says the same. If not, its answer may tell of what is forgotten."""
    reads = [*found.evidence.values(), *found.patterns.values()]
    marks = Entry.objects.of(user_id).current().filter(pk__in=[read.id for read in reads])
    now = {pk: bytes(mark) for pk, mark in marks.values_list("pk", "fingerprint")}
    return all(now.get(read.id) == read.mark for read in reads)


def apply_claims(user_id: uuid.UUID, found: PatternReview) -> None:
    """Raise nothing for what the model made up: it is left out."""
    if found.answer is None:
        return
    against = found.answer.contradicted
    confirmed = {label: set(labels) for label, labels in found.answer.confirmed.items()}
    known = {normalize(read.text): label for label, read in found.patterns.items()}
    new = {}
    for content, labels in found.answer.new.items():
        if (label := known.get(normalize(content))) is not None:
            confirmed.setdefault(label, set()).update(labels)
        else:
            new[content] = labels
    for label, read in found.patterns.items():
        if not read.ours:
            continue
        if label in against:
            if _evidence(found, against[label]):
                _weigh(read.id, F("confidence") * CONTRADICTION_FACTOR)
        elif label in confirmed and (evidence := _evidence(found, confirmed[label])):
            _confirm(read.id, evidence)
    for content, labels in list(new.items())[:MAX_NEW_PATTERNS]:
        if evidence := _evidence(found, labels):
            _begin(user_id, content, evidence)


def _evidence(found: PatternReview, labels: Collection[str]) -> list[uuid.UUID]:
    """The entries of labels that exist; none if none of them is new."""
    reads = [found.evidence[label] for label in labels if label in found.evidence]
    return [read.id for read in reads] if any(read.fresh for read in reads) else []


def _confirm(pattern: uuid.UUID, evidence: list[uuid.UUID]) -> None:
    before = EntrySource.objects.filter(entry_id=pattern).count()
    EntrySource.objects.bulk_create(
        [
            EntrySource(
                entry_id=pattern, kind=source.kind, source_id=source.source_id, seq=source.seq, at=source.at
            )
            for source in EntrySource.objects.filter(entry_id__in=evidence)
        ],
        ignore_conflicts=True,
    )
    if EntrySource.objects.filter(entry_id=pattern).count() > before:
        _weigh(pattern, F("confidence") + (1 - F("confidence")) * CONFIRMATION_GAIN)


def _weigh(pattern: uuid.UUID, confidence: Combinable) -> None:
    """`updated_at` is also what its weeks are counted from."""
    Entry.objects.filter(pk=pattern).update(confidence=confidence, updated_at=Now())


def _begin(user_id: uuid.UUID, content: str, evidence: list[uuid.UUID]) -> None:
    origins = [
        SourceRef(SourceKind(source.kind), source.source_id, source.seq, source.at)
        for source in EntrySource.objects.filter(entry_id__in=evidence)
    ]
    if len({(origin.kind, origin.id) for origin in origins}) < 2:
        return
    try:
        entries.remember(
            user_id=user_id,
            tier=Tier.PROACTIVE,
            content=content,
            origin=origins[0],
            also=origins[1:],
            confidence=INITIAL_CONFIDENCE,
            derived=True,
        )
    except MemoryFull:
        log.info("memory.patterns_full", user_id=str(user_id))


_DECAY: Final = """
UPDATE memory_entry SET confidence = confidence * power(%s, weeks), updated_at = updated_at + weeks * interval '7 days'
FROM (
    SELECT id, floor(extract(epoch FROM statement_timestamp() - updated_at) / 604800)::int AS weeks
    FROM memory_entry WHERE user_id = %s AND tier = 'proactive' AND derived AND valid_to IS NULL
) AS found
WHERE memory_entry.id = found.id AND weeks BETWEEN 1 AND 5000
"""


def decay(user_id: uuid.UUID) -> None:
    """Take from each pattern for the whole weeks in which nothing spoke for or against it; the weakest go."""
    with connection.cursor() as cursor:
        cursor.execute(_DECAY, [WEEKLY_FACTOR, user_id])
    Entry.objects.of(user_id).filter(
        tier=Tier.PROACTIVE, derived=True, confidence__lt=MIN_CONFIDENCE
    ).delete()
