"""Ask the model which patterns a user's new entries show, confirm or contradict. It names its evidence by label.

memory.patterns decides what becomes of its claims.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from django.db.models import Exists, OuterRef, QuerySet

from adiuva import llm
from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from adiuva.core.crypto import SealBroken, UserCipher
from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.llm.structured import UnusableAnswer
from memory import entry_content, structured
from memory.episode_condensing import is_condensed
from memory.models import Entry, EntrySource, Memory, Receipt, SourceKind, Tier
from memory.preferences import readable_tiers
from memory.receipts import write_receipt

MAX_PATTERN_CHARS: Final = 300
# The most entries shown to the model: new ones, and older ones that give them context.
_MAX_NEW: Final = 80
_MAX_OLDER: Final = 40
_MAX_PATTERNS: Final = 60
_ENTRY_CHARS: Final = 600
# Entries older than this are never new.
_MAX_AGE: Final = dt.timedelta(days=30)
# The most claims of each kind, and labels of each claim, that are read.
_MAX_CLAIMS: Final = 200
_EVIDENCE_TIERS: Final = (Tier.ASSOCIATIVE, Tier.EPISODIC)

_LABELS: Final = {"type": "array", "items": {"type": "string"}}

log = structlog.get_logger(__name__)


def _claims_schema(subject: str) -> dict[str, Any]:
    item = {
        "type": "object",
        "properties": {subject: {"type": "string"}, "evidence": _LABELS},
        "required": [subject, "evidence"],
        "additionalProperties": False,
    }
    return {"type": "array", "items": item}


_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "new": _claims_schema("content"),
        "confirmed": _claims_schema("pattern"),
        "contradicted": _claims_schema("pattern"),
    },
    "required": ["new", "confirmed", "contradicted"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class ShownText:
    """An entry as the model is shown it, with the fingerprint of its content then.

    `is_new`: whether it was written or changed since the last consolidation. `is_derived`: whether it is a pattern that
    was found, not written by the user.
    """

    id: uuid.UUID
    fingerprint: bytes
    text: str
    day: dt.date
    is_new: bool = False
    is_derived: bool = False


@dataclass(frozen=True)
class PatternClaims:
    """The model's claims: labels of evidence by content (of new patterns) or by label (of known ones)."""

    new: Mapping[str, Collection[str]]
    confirmed: Mapping[str, Collection[str]]
    contradicted: Mapping[str, Collection[str]]


@dataclass
class PatternReview:
    """The data that the model was shown, by label, and its claims.

    Entries newer than `until` were not shown; `more`: whether some of them should be soon.
    """

    until: dt.datetime
    more: bool = False
    evidence: dict[str, ShownText] = field(default_factory=dict)
    patterns: dict[str, ShownText] = field(default_factory=dict)
    claims: PatternClaims | None = None


async def review(
    user_id: uuid.UUID, model: llm.ChatModel, *, since: dt.datetime | None, now: dt.datetime
) -> PatternReview:
    """Show the model what is new since the last consolidation, if anything is. Raises ModelError."""
    found = await db.run(_prepare, user_id, model, since, now)
    if found.evidence:
        patterns = "\n".join(f"{label}: {shown.text}" for label, shown in found.patterns.items())
        evidence = "\n".join(f"{label} {shown.day}: {shown.text}" for label, shown in found.evidence.items())
        found.claims = await structured.ask_or_none(
            model,
            prompt="patterns",
            material=f"{delimit_untrusted('patterns', patterns)}\n\n{delimit_untrusted('entries', evidence)}",
            name="patterns",
            schema=_SCHEMA,
            read=_read_claims,
        )
    return found


def has_new_evidence(user_id: uuid.UUID, after: dt.datetime) -> bool:
    """Return whether entries that could show patterns were written or changed after a time."""
    return _evidence(user_id, _EVIDENCE_TIERS).filter(updated_at__gt=after).exists()


def _prepare(
    user_id: uuid.UUID, model: llm.ChatModel, since: dt.datetime | None, now: dt.datetime
) -> PatternReview:
    """Choose the data for the model, and write a receipt for it."""
    found = PatternReview(until=now)
    memory = Memory.objects.filter(pk=user_id, enabled=True).first()
    if memory is None:
        return found
    allowed = readable_tiers(memory.policy, model.provider)
    since = max(since or now - _MAX_AGE, now - _MAX_AGE)
    evidence = _evidence(user_id, [tier for tier in _EVIDENCE_TIERS if tier in allowed])
    changed = evidence.filter(updated_at__gt=since, updated_at__lte=now).order_by("updated_at", "pk")
    new = list(changed[: _MAX_NEW + 1])
    if Tier.PROACTIVE not in allowed or not new:
        return found
    if len(new) > _MAX_NEW:
        found.more = True
        new.pop()
        found.until = new[-1].updated_at
    older = list(evidence.filter(updated_at__lte=since).order_by("-updated_at", "-pk")[:_MAX_OLDER])
    cipher = cipher_for(user_id)
    found.evidence = _labelled("e", older[::-1], cipher) | _labelled(
        "e", new, cipher, first=len(older) + 1, is_new=True
    )
    patterns = Entry.objects.of(user_id).current().filter(tier=Tier.PROACTIVE)
    found.patterns = _labelled("p", patterns.order_by("-confidence", "pk")[:_MAX_PATTERNS], cipher)
    write_receipt(
        user_id=user_id,
        purpose=Receipt.Purpose.CONSOLIDATE,
        model=model,
        entries=[shown.id for shown in (*found.evidence.values(), *found.patterns.values())],
        withheld=[tier for tier in _EVIDENCE_TIERS if tier not in allowed],
    )
    return found


def _evidence(user_id: uuid.UUID, tiers: Iterable[str]) -> QuerySet[Entry]:
    """Return current entries of these tiers, except agents' findings and condensed episodes (their parts were read)."""
    of_runs = EntrySource.objects.filter(entry=OuterRef("pk"), kind=SourceKind.RUN)
    return Entry.objects.of(user_id).current().filter(~is_condensed(), ~Exists(of_runs), tier__in=tiers)


def _labelled(
    letter: str, rows: Iterable[Entry], cipher: UserCipher, *, first: int = 1, is_new: bool = False
) -> dict[str, ShownText]:
    shown = {}
    for number, row in enumerate(rows, first):
        try:
            content = entry_content.unseal_entry(row, cipher).content
        except SealBroken:
            log.error("memory.seal_broken", user_id=str(row.user_id), entry_id=str(row.pk))
            continue
        # On one line, so that no text can pass for the line of another entry.
        text = " ".join(content.split())[:_ENTRY_CHARS]
        day = (row.began_at or row.valid_from).date()
        shown[f"{letter}{number}"] = ShownText(
            row.pk, bytes(row.fingerprint), text, day, is_new=is_new, is_derived=row.derived
        )
    return shown


def _read_claims(value: Any) -> PatternClaims:
    """Return the usable claims. Their labels may still be unknown. Raises UnusableAnswer."""
    if not isinstance(value, dict):
        raise UnusableAnswer(
            "the answer must be one object with the lists `new`, `confirmed`, `contradicted`."
        )
    lists = {name: value.get(name, []) for name in ("new", "confirmed", "contradicted")}
    for name, claims in lists.items():
        if not isinstance(claims, list):
            raise UnusableAnswer(f"`{name}` must be a list.")
    return PatternClaims(
        new=_evidence_by_subject(lists["new"], "content"),
        confirmed=_evidence_by_subject(lists["confirmed"], "pattern"),
        contradicted=_evidence_by_subject(lists["contradicted"], "pattern"),
    )


def _evidence_by_subject(claims: list[Any], name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for claim in claims[:_MAX_CLAIMS]:
        if not isinstance(claim, dict) or not isinstance(claim.get("evidence"), list):
            continue
        subject = claim.get(name)
        if isinstance(subject, str) and "\0" not in subject and 0 < len(subject.strip()) <= MAX_PATTERN_CHARS:
            found[subject.strip()].update(
                label for label in claim["evidence"][:_MAX_CLAIMS] if isinstance(label, str)
            )
    return found
