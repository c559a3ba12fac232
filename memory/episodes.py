"""Episodes: short accounts of events, written from exchanges once a conversation has been idle, or from a run.

Exchanges of one conversation without a long pause make one episode; so do requests outside of conversations. A worker
leases the exchanges before it asks the model, outside of any transaction. One transaction writes the episode and
deletes its exchanges, so that each is written once, whoever else tried.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from zoneinfo import ZoneInfo

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from adiuva import llm
from adiuva.accounts.keys import NoSuchUser, cipher_for
from adiuva.accounts.models import User
from adiuva.core import db, leases
from adiuva.core.crypto import SealBroken
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.errors import AdiuvaError
from adiuva.core.leases import Lease
from adiuva.core.prompt_delimiting import delimit_untrusted
from billing import usage
from billing.models import Purpose
from memory import entries, structured
from memory.entries import EntryDetails, Remembered, SourceRef
from memory.exchanges import UnsealedExchange, shorten, unseal_exchange
from memory.models import EntrySource, Exchange, SourceKind, Tier
from memory.preferences import readable_tiers

MAX_SUMMARY_CHARS: Final = 2_000
# The most characters of exchanges that the model is shown.
_MATERIAL_CHARS: Final = 48_000
_LEASE: Final = dt.timedelta(minutes=10)
# Well below the lease.
_MODEL_TIMEOUT_S: Final = 120.0
# After this long without an answer of the model, the episode is written in the user's own words.
_MODEL_PATIENCE: Final = dt.timedelta(hours=24)
_LINE_CHARS: Final = 160
_MAX_LINES: Final = 8
_MAX_USERS_ENQUEUED: Final = 500

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EpisodeDraft:
    """Leased exchanges that make one episode, in order. With `without_model` the model is left out."""

    exchanges: Sequence[UnsealedExchange]
    leases: Sequence[Lease[Exchange]]
    zone: ZoneInfo
    without_model: bool


async def write_due(user_id: uuid.UUID) -> int:
    """Write the episodes of a user whose exchanges are complete. Returns how many.

    If the model fails on some, they are tried again when their lease has ended.
    """
    written = 0
    try:
        provider = llm.chat_model(purpose="memory").provider
    except llm.ModelNotConfigured:  # after _MODEL_PATIENCE, episodes are written without one
        provider = ""
    while draft := await db.run(_claim, user_id, provider):
        try:
            async with usage.metered(user_id, Purpose.MEMORY):
                summary = await _summarize(draft)
            written += await db.run(_save, user_id, draft, summary)
        except (llm.ModelError, TimeoutError) as error:
            code = error.code if isinstance(error, AdiuvaError) else "timeout"
            log.warning("episode.deferred", user_id=str(user_id), code=code)
            break
        except NoSuchUser:
            break
    return written


def enqueue_due() -> int:
    """Enqueue tasks for users with exchanges that may be complete. Returns for how many users."""
    idle = Exchange.objects.filter(
        leases.is_free(), said_at__lt=Now() - _max_pause(), recorded_at__isnull=False
    )
    users = list(idle.values_list("user_id", flat=True).order_by().distinct()[:_MAX_USERS_ENQUEUED])
    for user_id in users:
        enqueue_on_commit("memory.episodes", user_id)
    return len(users)


def _max_pause() -> dt.timedelta:
    """Return the longest pause within an episode."""
    return dt.timedelta(seconds=settings.MEMORY["session_idle_s"])


@transaction.atomic
def _claim(user_id: uuid.UUID, provider: str) -> EpisodeDraft | None:
    """Lease the exchanges of the user's oldest episode to write: those whose facts were all extracted."""
    try:
        memory = entries.lock_memory(user_id)
        cipher = cipher_for(user_id)
        zone = ZoneInfo(User.objects.values_list("timezone", flat=True).get(pk=user_id))
    except (NoSuchUser, User.DoesNotExist):
        return None
    if not memory.enabled:
        Exchange.objects.filter(user_id=user_id).delete()
        return None
    stored = Exchange.objects.filter(user_id=user_id).order_by("said_at", "pk")
    for rows in _by_episode(stored.annotate(now=Now())):
        now = rows[0].now
        if rows[-1].said_at >= now - _max_pause():
            continue
        if any(row.recorded_at is None or (row.lease_until and row.lease_until > now) for row in rows):
            continue
        of_episode = stored.filter(pk__in=[row.pk for row in rows])
        try:
            exchanges = [unseal_exchange(row, cipher) for row in rows]
        except SealBroken:
            log.error("memory.exchange_seal_broken", user_id=str(user_id))
            of_episode.delete()
            continue
        claimed = leases.claim(of_episode, _LEASE, most=len(rows))
        may_read = Tier.EPISODIC in readable_tiers(memory.policy, provider)
        return EpisodeDraft(
            exchanges,
            [row.lease(_LEASE) for row in claimed],
            zone,
            without_model=not may_read or rows[-1].said_at < now - _MODEL_PATIENCE,
        )
    return None


def _by_episode(rows: Iterable[Any]) -> list[list[Any]]:
    """Group exchanges by conversation (requests outside of conversations are one group) and by the pauses in them."""
    episodes: list[list[Any]] = []
    latest: dict[tuple[str, uuid.UUID | None], list[Any]] = {}
    for row in rows:
        group = (row.kind, row.source_id if row.kind == SourceKind.CONVERSATION else None)
        episode = latest.get(group)
        if episode is None or row.said_at - episode[-1].said_at >= _max_pause():
            episode = latest[group] = []
            episodes.append(episode)
        episode.append(row)
    return episodes


async def _summarize(draft: EpisodeDraft) -> str:
    """Return the episode's text; empty if nothing happened that is worth one. Raises ModelError and TimeoutError."""
    if draft.without_model:
        return _in_the_users_words(draft)
    model = llm.chat_model(purpose="memory")
    await model.find_window()
    most = model.window.part(2, _MATERIAL_CHARS)
    each = max(200, most // len(draft.exchanges))
    lines = [
        f"user: {shorten(one.said, each * 2 // 3)}\nassistant: {shorten(one.answer, each // 3)}"
        for one in draft.exchanges
    ]
    began = draft.exchanges[0].at.astimezone(draft.zone)
    said = shorten("\n".join(lines), most)
    async with asyncio.timeout(_MODEL_TIMEOUT_S):
        summary = await structured.ask_or_none(
            model,
            prompt="episode",
            material=f"Session of {began:%A %Y-%m-%d %H:%M}\n{delimit_untrusted('conversation', said)}",
            name="episode",
            schema=structured.SUMMARY_SCHEMA,
            read=partial(
                structured.read_summary,
                material=f"{began:%Y-%m-%d} {said}",
                max_chars=MAX_SUMMARY_CHARS,
                may_be_empty=True,
                day=began.date(),
            ),
        )
    return _in_the_users_words(draft) if summary is None else summary


def _in_the_users_words(draft: EpisodeDraft) -> str:
    lines = [_line(one.said) for one in draft.exchanges]
    more = [f"(and {len(lines) - _MAX_LINES} more)"] if len(lines) > _MAX_LINES else []
    return "\n".join(["The user said:", *(f"- {line}" for line in lines[:_MAX_LINES]), *more])


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LINE_CHARS else f"{line[:_LINE_CHARS]}…"


@transaction.atomic
def _save(user_id: uuid.UUID, draft: EpisodeDraft, summary: str) -> bool:
    """Write the episode if all its exchanges are still leased, else release them. Returns whether it was written."""
    memory = entries.lock_memory(user_id)
    held = leases.held_among(draft.leases)
    if not memory.enabled or len(held) != len(draft.exchanges):
        leases.release_all(held)
        return False
    Exchange.objects.filter(pk__in=[row.pk for row in held]).delete()
    first, *more = (exchange.source for exchange in draft.exchanges)
    if summary:
        try:
            entries.remember(
                user_id=user_id,
                tier=Tier.EPISODIC,
                content=summary,
                source=first,
                details=EntryDetails(
                    began_at=draft.exchanges[0].at,
                    ended_at=draft.exchanges[-1].at,
                    derived=True,
                    more_sources=more,
                ),
            )
        except AdiuvaError as error:  # the tier is full; consolidation makes room
            log.warning("episode.dropped", user_id=str(user_id), code=error.code)
    return True


@transaction.atomic
def remember_run(
    *,
    user_id: uuid.UUID,
    run_id: uuid.UUID,
    agent: str,
    found: Mapping[str, int],
    began_at: dt.datetime,
    ended_at: dt.datetime,
) -> Remembered | None:
    """Write an episode of an agent's run, without a model: how many records it found, by table.

    Their titles come from the documents, so they do not become memories; the device has them. Returns None if the run
    found nothing or has its episode already, or the user's memory is off. Raises MemoryFull.
    """
    counts = [f"{count} {table}" for table, count in found.items() if count]
    if not counts or not entries.lock_memory(user_id).enabled:
        return None
    if EntrySource.objects.filter(entry__user_id=user_id, kind=SourceKind.RUN, source_id=run_id).exists():
        return None
    return entries.remember(
        user_id=user_id,
        tier=Tier.EPISODIC,
        content=f"The agent “{_line(agent)}” found {', '.join(counts)}.",
        source=SourceRef(SourceKind.RUN, run_id, at=ended_at),
        details=EntryDetails(began_at=began_at, ended_at=ended_at),
    )
