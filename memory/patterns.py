"""Apply the model's claims about patterns: begin new ones, and change the confidence of known ones.

A new pattern needs evidence from two sources. Confirmation raises a pattern's confidence once per consolidation,
contradiction lowers it, each week without either lowers it a little, and the least certain patterns are deleted. A
claim needs an entry that is new since the last consolidation, and a confirmation needs a source that the pattern does
not have yet, so that nothing counts twice. Patterns that the user wrote or reworded are shown to the model but never
changed.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Final

import structlog
from django.db import connection
from django.db.models import F
from django.db.models.expressions import Combinable
from django.db.models.functions import Now

from memory import entries, grounding
from memory.entries import EntryDetails, MemoryFull, SourceRef
from memory.models import Entry, EntrySource, Tier
from memory.pattern_review import PatternReview
from memory.terms import normalize

INITIAL_CONFIDENCE: Final = 0.4
# A confirmation closes this fraction of the distance to 1; a contradiction and a week without either are factors.
CONFIRMATION_GAIN: Final = 0.3
CONTRADICTION_FACTOR: Final = 0.5
WEEKLY_FACTOR: Final = 0.9
# Below this a pattern is deleted.
MIN_CONFIDENCE: Final = 0.15
# The bound for one consolidation.
MAX_NEW_PATTERNS: Final = 10

log = structlog.get_logger(__name__)


def is_unchanged(user_id: uuid.UUID, review: PatternReview) -> bool:
    """Return whether all entries that the model was shown are unchanged. If not, a claim may reveal a forgotten one."""
    shown = [*review.evidence.values(), *review.patterns.values()]
    rows = Entry.objects.of(user_id).current().filter(pk__in=[text.id for text in shown])
    fingerprints = {pk: bytes(value) for pk, value in rows.values_list("pk", "fingerprint")}
    return all(fingerprints.get(text.id) == text.fingerprint for text in shown)


def apply_claims(user_id: uuid.UUID, review: PatternReview) -> None:
    """Write the usable claims and ignore the rest. Call it with the memory locked."""
    if review.claims is None:
        return
    contradicted = review.claims.contradicted
    confirmed = {label: set(labels) for label, labels in review.claims.confirmed.items()}
    known = {normalize(shown.text): label for label, shown in review.patterns.items()}
    new = {}
    for content, labels in review.claims.new.items():
        if (label := known.get(normalize(content))) is not None:
            confirmed.setdefault(label, set()).update(labels)
        else:
            new[content] = labels
    for label, shown in review.patterns.items():
        if not shown.is_derived:
            continue
        if label in contradicted:
            if _entries_of(review, contradicted[label]):
                _set_confidence(shown.id, F("confidence") * CONTRADICTION_FACTOR)
        elif label in confirmed and (evidence := _entries_of(review, confirmed[label])):
            _confirm(shown.id, evidence)
    for content, labels in list(new.items())[:MAX_NEW_PATTERNS]:
        seen = "\n".join(review.evidence[label].text for label in labels if label in review.evidence)
        if grounding.foreign_facts(content, seen):
            continue
        if evidence := _entries_of(review, labels):
            _begin(user_id, content, evidence)


def _entries_of(review: PatternReview, labels: Collection[str]) -> list[uuid.UUID]:
    """Return the entries with these labels; none if none of them is new."""
    shown = [review.evidence[label] for label in labels if label in review.evidence]
    return [text.id for text in shown] if any(text.is_new for text in shown) else []


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
        _set_confidence(pattern, F("confidence") + (1 - F("confidence")) * CONFIRMATION_GAIN)


def _set_confidence(pattern: uuid.UUID, confidence: Combinable) -> None:
    """Set the confidence, and `updated_at`, from which `decay` counts weeks."""
    Entry.objects.filter(pk=pattern).update(confidence=confidence, updated_at=Now())


def _begin(user_id: uuid.UUID, content: str, evidence: list[uuid.UUID]) -> None:
    sources = [SourceRef.of(source) for source in EntrySource.objects.filter(entry_id__in=evidence)]
    if len({(source.kind, source.id) for source in sources}) < 2:
        return
    try:
        entries.remember(
            user_id=user_id,
            tier=Tier.PROACTIVE,
            content=content,
            source=sources[0],
            details=EntryDetails(confidence=INITIAL_CONFIDENCE, derived=True, more_sources=sources[1:]),
        )
    except MemoryFull:
        log.info("pattern.dropped", user_id=str(user_id), code=MemoryFull.code)


_DECAY: Final = """
UPDATE memory_entry SET confidence = confidence * power(%s, weeks), updated_at = updated_at + weeks * interval '7 days'
FROM (
    SELECT id, floor(extract(epoch FROM statement_timestamp() - updated_at) / 604800)::int AS weeks
    FROM memory_entry WHERE user_id = %s AND tier = 'proactive' AND derived AND valid_to IS NULL
) AS found
WHERE memory_entry.id = found.id AND weeks BETWEEN 1 AND 5000
"""


def decay(user_id: uuid.UUID) -> None:
    """Lower the confidence of patterns for each whole week without a claim, and delete the least certain ones."""
    with connection.cursor() as cursor:
        cursor.execute(_DECAY, [WEEKLY_FACTOR, user_id])
    Entry.objects.of(user_id).filter(
        tier=Tier.PROACTIVE, derived=True, confidence__lt=MIN_CONFIDENCE
    ).delete()
