"""The episodes of a week that is well past become one.

A part then holds no more, its successor the episode that stands for it. That one has the sources of all parts and is
derived: when one of them is forgotten it goes, and its other parts hold again (`entries.forget_source`).
"""

from __future__ import annotations

import datetime as dt
import math
import random
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Coalesce, Greatest, Now

from adiuva import llm
from adiuva.accounts.keys import cipher_for
from adiuva.accounts.models import User
from adiuva.core import db
from adiuva.core.crypto import SealBroken
from adiuva.core.logging import log
from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.llm.structured import UnusableAnswer
from memory import entries, provider_policy, structured
from memory.entries import RememberOutcome, SourceRef
from memory.models import Embedding, Entry, EntrySource, Memory, Receipt, SourceKind, Tier

MIN_EPISODES: Final = 3  # episodes that are worth condensing
MAX_EPISODES: Final = 20
MAX_MODEL_CALLS: Final = 8  # of the model, a visit
MAX_SUMMARY_CHARS: Final = 3_000  # characters

_SCHEMA: Final = {
    "type": "object",
    "properties": {"summary": {"type": "string"}},
    "required": ["summary"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class EpisodePart:
    """An episode, and the mark of what it says."""

    id: uuid.UUID
    mark: bytes
    began_at: dt.datetime
    ended_at: dt.datetime


class _SummaryAlreadyKnown(Exception):
    """What the model wrote is remembered already, as something else."""


def is_condensed() -> Q:
    """Episodes that stand for others, until `keep_condensed_parts_days` removes those; then they are like any other."""
    return Q(Exists(Entry.objects.filter(successor=OuterRef("pk"))), derived=True)


async def condense(user_id: uuid.UUID, model: llm.ChatModel) -> bool:
    """Condense what is ripe, some of it if it is much. Returns whether to come again soon. Raise a ModelError.

    Each episode that comes of it commits by itself, so this may be killed anywhere and called again.
    """
    ripe = await db.run(_ripe, user_id, model.provider)
    random.shuffle(ripe)  # what the model cannot condense does not keep the rest back
    done = 0
    for parts in ripe[:MAX_MODEL_CALLS]:
        notes = await db.run(_read, user_id, parts, model)
        if notes is None:
            continue
        summary = await structured.ask_or_none(
            model,
            prompt="condense",
            material=delimit_untrusted("notes", notes),
            name="condensed",
            schema=_SCHEMA,
            read=_summary,
        )
        if summary is not None:
            done += await db.run(_keep, user_id, parts, summary)
    return done == MAX_MODEL_CALLS < len(ripe)


def _ripe(user_id: uuid.UUID, provider: str) -> list[list[EpisodePart]]:
    """What may be condensed, each list into one."""
    memory = Memory.objects.filter(pk=user_id, enabled=True).first()
    if memory is None or Tier.EPISODIC not in provider_policy.readable_tiers(memory.policy, provider):
        return []
    zone = ZoneInfo(User.objects.values_list("timezone", flat=True).get(pk=user_id))
    last = dt.datetime.now(zone) - dt.timedelta(days=settings.MEMORY["condense_after_days"])
    rows = (
        _candidates(user_id)
        .annotate(
            began=Coalesce("began_at", "valid_from"), ended=Coalesce("ended_at", "began_at", "valid_from")
        )
        .filter(ended__lt=last)
        .order_by("began", "pk")
        .values_list("pk", "fingerprint", "began", "ended")
    )
    weeks: dict[dt.date, list[EpisodePart]] = defaultdict(list)
    for pk, mark, began, ended in rows:
        day = began.astimezone(zone).date()
        monday = day - dt.timedelta(days=day.weekday())
        if monday + dt.timedelta(days=7) <= last.date():
            weeks[monday].append(EpisodePart(pk, bytes(mark), began, ended))
    return [parts for week in weeks.values() if len(week) >= MIN_EPISODES for parts in _split(week)]


def _candidates(user_id: uuid.UUID) -> Any:
    """Not what is condensed already, nor what the user wrote."""
    by_hand = EntrySource.objects.filter(entry=OuterRef("pk"), kind=SourceKind.USER)
    return Entry.objects.of(user_id).current().filter(~Exists(by_hand), ~is_condensed(), tier=Tier.EPISODIC)


def _split(week: Sequence[EpisodePart]) -> Iterator[list[EpisodePart]]:
    """Lists of much the same length. What is left after the first is split as it would have been with it."""
    size = math.ceil(len(week) / math.ceil(len(week) / MAX_EPISODES))
    for start in range(0, len(week), size):
        yield list(week[start : start + size])


def _read(user_id: uuid.UUID, parts: Sequence[EpisodePart], model: llm.ChatModel) -> str | None:
    """What the parts say, with a receipt that the model got it. None: they are not what they were."""
    cipher = cipher_for(user_id)
    rows = {
        row.pk: row
        for row in _candidates(user_id).filter(pk__in=[part.id for part in parts], user__memory__enabled=True)
    }
    if not _stand(parts, rows):
        return None
    try:
        notes = [
            f"{part.began_at:%Y-%m-%d}: {' '.join(entries.unseal_entry(rows[part.id], cipher).content.split())}"
            for part in parts
        ]
    except SealBroken:
        log.error("memory.does_not_open", user_id=str(user_id))
        return None
    provider_policy.write_receipt(
        user_id=user_id, purpose=Receipt.Purpose.CONSOLIDATE, model=model, entries=[part.id for part in parts]
    )
    return "\n".join(notes)


def _summary(value: Any) -> str:
    summary = value.get("summary") if isinstance(value, dict) else None
    if not isinstance(summary, str) or not (summary := summary.replace("\0", "").strip()):
        raise UnusableAnswer("`summary` must be a text.")
    if len(summary) > MAX_SUMMARY_CHARS:
        raise UnusableAnswer("`summary` is far too long: at most 150 words.")
    return summary


def _keep(user_id: uuid.UUID, parts: Sequence[EpisodePart], summary: str) -> bool:
    try:
        return _replace(user_id, parts, summary)
    except _SummaryAlreadyKnown:
        log.warning("memory.answer_not_usable", asked_for="condensed")
        return False


@transaction.atomic
def _replace(user_id: uuid.UUID, parts: Sequence[EpisodePart], summary: str) -> bool:
    """Whether they still were what was read; if not, nothing happens."""
    memory = entries.lock_memory(user_id)
    held = _candidates(user_id).filter(pk__in=[part.id for part in parts])
    rows = {row.pk: row for row in held}
    if not memory.enabled or not _stand(parts, rows):
        return False
    origins = [
        SourceRef(SourceKind(source.kind), source.source_id, source.seq, source.at)
        for source in EntrySource.objects.filter(entry_id__in=rows)
    ]
    # `updated_at` stays: they say nothing new, neither now nor when they hold again.
    Entry.objects.filter(pk__in=rows).update(valid_to=Greatest(F("valid_from"), Now()))
    Embedding.objects.filter(pk__in=rows).delete()
    kept = entries.remember(
        user_id=user_id,
        tier=Tier.EPISODIC,
        content=summary,
        origin=origins[0],
        also=origins[1:],
        began_at=min(part.began_at for part in parts),
        ended_at=max(part.ended_at for part in parts),
        derived=True,
    )
    if kept.outcome is not RememberOutcome.NEW:
        raise _SummaryAlreadyKnown
    Entry.objects.filter(pk__in=rows).update(successor=kept.entry)
    return True


def _stand(parts: Sequence[EpisodePart], rows: dict[uuid.UUID, Entry]) -> bool:
    return all(part.id in rows and bytes(rows[part.id].fingerprint) == part.mark for part in parts)
