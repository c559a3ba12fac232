"""What happened in a session, once it has been quiet for a while: its exchanges become one entry, and go.

A conversation is a session until it pauses; so are a user's requests that belong to no conversation. Exchanges are
claimed for a while before the model is asked, outside of any transaction. The entry is written and the exchanges are
deleted in one: so a session is told of once, whoever else tried.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from adiuva import llm
from adiuva.accounts.keys import NoSuchUser, cipher_for
from adiuva.accounts.models import User
from adiuva.core import db
from adiuva.core.crypto import SealBroken
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.errors import AdiuvaError
from adiuva.core.logging import log
from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.llm.structured import UnusableAnswer
from memory import entries, provider_policy, structured
from memory.entries import Remembered, SourceRef
from memory.exchanges import UnsealedExchange, shorten, unseal_exchange
from memory.models import EntrySource, Exchange, SourceKind, Tier

MAX_SUMMARY_CHARS: Final = 2_000  # characters
_CHARS: Final = 48_000  # of a session that the model gets to see
_CLAIM: Final = dt.timedelta(minutes=10)
_MODEL_S: Final = 120.0
_WAITS: Final = dt.timedelta(hours=24)  # for the model; then it is told of in the user's own words
_LINE_CHARS: Final = 160
_MOST_LINES: Final = 8
_MOST_TITLES: Final = 10
_SWEPT_AT_ONCE: Final = 500

_SCHEMA: Final = {
    "type": "object",
    "properties": {"summary": {"type": "string"}},
    "required": ["summary"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class EpisodeDraft:
    """Exchanges that belong together, in order. `plain`: no model is to be asked about it."""

    exchanges: Sequence[UnsealedExchange]
    zone: ZoneInfo
    plain: bool


async def write_due(user_id: uuid.UUID) -> int:
    """Tell of a user's sessions that are over. Returns of how many.

    What the model cannot be asked about now is tried again later.
    """
    done = 0
    try:
        provider = llm.chat_model().provider
    except llm.ModelNotConfigured:  # none is asked: it is told of in the user's own words, when it has waited
        provider = ""
    while session := await db.run(_claim, user_id, provider):
        try:
            summary = await _summary(session)
            done += await db.run(_keep, user_id, session, summary)
        except (llm.ModelError, TimeoutError) as error:
            why = error.code if isinstance(error, AdiuvaError) else "timeout"
            log.warning("memory.no_episode", user_id=str(user_id), code=why)
            break
        except NoSuchUser:
            break
    return done


def enqueue_due() -> int:
    """Tell the workers of whose sessions are over. Returns of how many users."""
    ready = Exchange.objects.filter(not_before__lte=Now(), said_at__lt=Now() - _quiet()).exclude(
        recorded_at=None
    )
    users = list(ready.values_list("user_id", flat=True).order_by().distinct()[:_SWEPT_AT_ONCE])
    for user_id in users:
        enqueue_on_commit("memory.episodes", user_id)
    return len(users)


def _quiet() -> dt.timedelta:
    return dt.timedelta(seconds=settings.MEMORY["session_idle_s"])


@transaction.atomic
def _claim(user_id: uuid.UUID, provider: str) -> EpisodeDraft | None:
    """The user's oldest session that is over and has been read for facts, taken for a while."""
    try:
        memory = entries.lock_memory(user_id)
        cipher = cipher_for(user_id)
        zone = ZoneInfo(User.objects.values_list("timezone", flat=True).get(pk=user_id))
    except (NoSuchUser, User.DoesNotExist):
        return None
    if not memory.enabled:
        Exchange.objects.filter(user_id=user_id).delete()
        return None
    kept = Exchange.objects.filter(user_id=user_id).order_by("said_at", "pk").annotate(now=Now())
    for rows in _sessions(kept):
        now = rows[0].now
        if rows[-1].said_at >= now - _quiet():
            continue
        if any(row.recorded_at is None or row.not_before > now for row in rows):
            continue
        try:
            session = [unseal_exchange(row, cipher) for row in rows]
        except SealBroken:
            log.error("memory.exchange_broken", user_id=str(user_id))
            Exchange.objects.filter(pk__in=[row.pk for row in rows]).delete()
            continue
        Exchange.objects.filter(pk__in=[row.pk for row in rows]).update(not_before=Now() + _CLAIM)
        may_read = Tier.EPISODIC in provider_policy.readable_tiers(memory.policy, provider)
        return EpisodeDraft(session, zone, plain=not may_read or rows[-1].said_at < now - _WAITS)
    return None


def _sessions(rows: Iterable[Any]) -> list[list[Any]]:
    """By conversation, and requests by the pauses between them."""
    found: list[list[Any]] = []
    latest: dict[tuple[str, uuid.UUID | None], list[Any]] = {}
    for row in rows:
        place = (row.kind, row.source_id if row.kind == SourceKind.CONVERSATION else None)
        session = latest.get(place)
        if session is None or row.said_at - session[-1].said_at >= _quiet():
            session = latest[place] = []
            found.append(session)
        session.append(row)
    return found


async def _summary(session: EpisodeDraft) -> str:
    """Empty: nothing happened that is worth a line. Raise a ModelError."""
    if session.plain:
        return _in_the_users_words(session)
    each = max(200, _CHARS // len(session.exchanges))
    lines = [
        f"user: {shorten(one.said, each * 2 // 3)}\nassistant: {shorten(one.answer, each // 3)}"
        for one in session.exchanges
    ]
    began = session.exchanges[0].at.astimezone(session.zone)
    said = shorten("\n".join(lines), _CHARS)
    async with asyncio.timeout(_MODEL_S):
        summary = await structured.ask_or_none(
            llm.chat_model(),
            prompt="episode",
            material=f"Session of {began:%A %Y-%m-%d %H:%M}\n{delimit_untrusted('conversation', said)}",
            name="episode",
            schema=_SCHEMA,
            read=_read,
        )
    return _in_the_users_words(session) if summary is None else summary


def _read(value: Any) -> str:
    summary = value.get("summary") if isinstance(value, dict) else None
    if not isinstance(summary, str):
        raise UnusableAnswer("`summary` must be a text.")
    summary = summary.replace("\0", "").strip()
    if len(summary) > MAX_SUMMARY_CHARS:
        raise UnusableAnswer("`summary` is far too long: at most five short sentences.")
    return summary


def _in_the_users_words(session: EpisodeDraft) -> str:
    """What stands for a summary where no model makes one."""
    lines = [_line(one.said) for one in session.exchanges]
    more = [f"(and {len(lines) - _MOST_LINES} more)"] if len(lines) > _MOST_LINES else []
    return "\n".join(["The user said:", *(f"- {line}" for line in lines[:_MOST_LINES]), *more])


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LINE_CHARS else f"{line[:_LINE_CHARS]}…"


@transaction.atomic
def _keep(user_id: uuid.UUID, session: EpisodeDraft, summary: str) -> bool:
    """Whether it was still there as it was read. If not, nothing happens, and what is left is told of anew."""
    memory = entries.lock_memory(user_id)
    rows = Exchange.objects.filter(user_id=user_id, pk__in=[one.id for one in session.exchanges])
    if not memory.enabled or rows.count() != len(session.exchanges):
        rows.update(not_before=Now())
        return False
    rows.delete()
    first, *others = (one.origin for one in session.exchanges)
    if summary:
        try:
            entries.remember(
                user_id=user_id,
                tier=Tier.EPISODIC,
                content=summary,
                origin=first,
                also=others,
                began_at=session.exchanges[0].at,
                ended_at=session.exchanges[-1].at,
                derived=True,
            )
        except AdiuvaError as error:  # it is full; consolidation makes room
            log.warning("memory.no_episode", user_id=str(user_id), code=error.code)
    return True


@transaction.atomic
def remember_run(
    *,
    user_id: uuid.UUID,
    run_id: uuid.UUID,
    agent: str,
    found: Mapping[str, int],
    titles: Sequence[str],
    began_at: dt.datetime,
    ended_at: dt.datetime,
) -> Remembered | None:
    """Keep what a run of an agent found: how many records by table, and titles of some. Without a model, once a run.

    None where it found nothing, where it is kept already, or where the user's memory is off. Raise MemoryFull.
    """
    counts = [f"{count} {table}" for table, count in found.items() if count]
    if not counts or not entries.lock_memory(user_id).enabled:
        return None
    if EntrySource.objects.filter(entry__user_id=user_id, kind=SourceKind.RUN, source_id=run_id).exists():
        return None
    shown = [_line(title) for title in titles[:_MOST_TITLES]]
    more = sum(found.values()) - len(shown)
    named = f": {'; '.join(shown)}{f' and {more} more' if more > 0 else ''}" if shown else ""
    return entries.remember(
        user_id=user_id,
        tier=Tier.EPISODIC,
        content=f"The agent “{_line(agent)}” found {', '.join(counts)}{named}.",
        origin=SourceRef(SourceKind.RUN, run_id, at=ended_at),
        began_at=began_at,
        ended_at=ended_at,
    )
