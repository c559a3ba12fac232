"""Condense the episodes of a past week into one.

The parts become history with the condensed episode as their successor. It has the sources of all parts and is derived:
when one of them is forgotten, it is deleted and its other parts become current again (memory.forgetting).
"""

from __future__ import annotations

import datetime as dt
import math
import random
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from zoneinfo import ZoneInfo

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Coalesce, Greatest, Now

from adiuva import llm
from adiuva.accounts.keys import cipher_for
from adiuva.accounts.models import User
from adiuva.core import db
from adiuva.core.crypto import SealBroken
from adiuva.core.prompt_delimiting import delimit_untrusted
from memory import entries, entry_content, structured
from memory.entries import EntryDetails, RememberOutcome, SourceRef
from memory.models import Embedding, Entry, EntrySource, Memory, Receipt, SourceKind, Tier
from memory.preferences import readable_tiers
from memory.receipts import write_receipt

# Weeks with fewer episodes stay; those with more than the maximum become several.
MIN_EPISODES: Final = 3
MAX_EPISODES: Final = 20
# The bound for one consolidation.
MAX_MODEL_CALLS: Final = 8
MAX_SUMMARY_CHARS: Final = 3_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EpisodePart:
    """An episode to condense. `fingerprint` is that of its content when it was read."""

    id: uuid.UUID
    fingerprint: bytes
    began_at: dt.datetime
    ended_at: dt.datetime


class _SummaryAlreadyKnown(Exception):
    """Another current entry says exactly what the model wrote."""


def is_condensed() -> Q:
    """Return a condition on episodes that stand for others, until `keep_condensed_parts_days` removes those."""
    return Q(Exists(Entry.objects.filter(successor=OuterRef("pk"))), derived=True)


async def condense(user_id: uuid.UUID, model: llm.ChatModel) -> bool:
    """Condense all weeks that can be condensed, in at most MAX_MODEL_CALLS calls. Returns whether to call again soon.

    Raises ModelError. Each condensed episode commits by itself, so this may be killed anywhere and called again.
    """
    groups = await db.run(_find_groups, user_id, model.provider)
    random.shuffle(groups)  # those that the model cannot condense must not hold up the rest
    done = 0
    for parts in groups[:MAX_MODEL_CALLS]:
        notes = await db.run(_read_notes, user_id, parts, model)
        if notes is None:
            continue
        summary = await structured.ask_or_none(
            model,
            prompt="condense",
            material=delimit_untrusted("notes", notes),
            name="condensed",
            schema=structured.SUMMARY_SCHEMA,
            read=partial(structured.read_summary, material=notes, max_chars=MAX_SUMMARY_CHARS),
        )
        if summary is not None:
            done += await db.run(_save, user_id, parts, summary)
    # If none could be condensed, most likely none of the rest can.
    return done > 0 and len(groups) > MAX_MODEL_CALLS


def _find_groups(user_id: uuid.UUID, provider: str) -> list[list[EpisodePart]]:
    """Return groups of episodes; each group may be condensed into one."""
    memory = Memory.objects.filter(pk=user_id, enabled=True).first()
    if memory is None or Tier.EPISODIC not in readable_tiers(memory.policy, provider):
        return []
    zone = ZoneInfo(User.objects.values_list("timezone", flat=True).get(pk=user_id))
    end = dt.datetime.now(zone) - dt.timedelta(days=settings.MEMORY["condense_after_days"])
    rows = (
        _candidates(user_id)
        .annotate(
            began=Coalesce("began_at", "valid_from"), ended=Coalesce("ended_at", "began_at", "valid_from")
        )
        .filter(ended__lt=end)
        .order_by("began", "pk")
        .values_list("pk", "fingerprint", "began", "ended")
    )
    weeks: dict[dt.date, list[EpisodePart]] = defaultdict(list)
    for pk, fingerprint, began, ended in rows:
        day = began.astimezone(zone).date()
        monday = day - dt.timedelta(days=day.weekday())
        if monday + dt.timedelta(days=7) <= end.date():
            weeks[monday].append(EpisodePart(pk, bytes(fingerprint), began, ended))
    return [parts for week in weeks.values() if len(week) >= MIN_EPISODES for parts in _split(week)]


def _candidates(user_id: uuid.UUID) -> Any:
    """Return current episodes that are not condensed yet and that the user did not write."""
    by_hand = EntrySource.objects.filter(entry=OuterRef("pk"), kind=SourceKind.USER)
    return Entry.objects.of(user_id).current().filter(~Exists(by_hand), ~is_condensed(), tier=Tier.EPISODIC)


def _split(week: Sequence[EpisodePart]) -> Iterator[list[EpisodePart]]:
    """Split into lists of about equal length, so that the rest is split the same way once the first is condensed."""
    size = math.ceil(len(week) / math.ceil(len(week) / MAX_EPISODES))
    for start in range(0, len(week), size):
        yield list(week[start : start + size])


def _read_notes(user_id: uuid.UUID, parts: Sequence[EpisodePart], model: llm.ChatModel) -> str | None:
    """Return the text of the parts, with a receipt written for it. None if they were changed since."""
    cipher = cipher_for(user_id)
    rows = {
        row.pk: row
        for row in _candidates(user_id).filter(pk__in=[part.id for part in parts], user__memory__enabled=True)
    }
    if not _unchanged(parts, rows):
        return None
    try:
        notes = [
            f"{part.began_at:%Y-%m-%d}: {' '.join(entry_content.unseal_entry(rows[part.id], cipher).content.split())}"
            for part in parts
        ]
    except SealBroken:
        log.error("memory.seal_broken", user_id=str(user_id))
        return None
    write_receipt(
        user_id=user_id, purpose=Receipt.Purpose.CONSOLIDATE, model=model, entries=[part.id for part in parts]
    )
    return "\n".join(notes)


def _save(user_id: uuid.UUID, parts: Sequence[EpisodePart], summary: str) -> bool:
    try:
        return _replace(user_id, parts, summary)
    except _SummaryAlreadyKnown:
        log.warning("memory.answer_unusable", asked_for="condensed")
        return False


@transaction.atomic
def _replace(user_id: uuid.UUID, parts: Sequence[EpisodePart], summary: str) -> bool:
    """Replace the parts by one episode if they are unchanged. Returns whether they were."""
    memory = entries.lock_memory(user_id)
    candidates = _candidates(user_id).filter(pk__in=[part.id for part in parts])
    rows = {row.pk: row for row in candidates}
    if not memory.enabled or not _unchanged(parts, rows):
        return False
    first, *more = map(SourceRef.of, EntrySource.objects.filter(entry_id__in=rows))
    # `updated_at` stays: they say nothing new, neither now nor if they become current again.
    Entry.objects.filter(pk__in=rows).update(valid_to=Greatest(F("valid_from"), Now()))
    Embedding.objects.filter(pk__in=rows).delete()
    kept = entries.remember(
        user_id=user_id,
        tier=Tier.EPISODIC,
        content=summary,
        source=first,
        details=EntryDetails(
            began_at=min(part.began_at for part in parts),
            ended_at=max(part.ended_at for part in parts),
            derived=True,
            more_sources=more,
        ),
    )
    if kept.outcome is not RememberOutcome.NEW:
        raise _SummaryAlreadyKnown
    Entry.objects.filter(pk__in=rows).update(successor=kept.entry)
    return True


def _unchanged(parts: Sequence[EpisodePart], rows: dict[uuid.UUID, Entry]) -> bool:
    return all(part.id in rows and bytes(rows[part.id].fingerprint) == part.fingerprint for part in parts)
