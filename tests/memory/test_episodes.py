"""A session that is over is told of once, in one entry, and what was said in it goes."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import LazySettings
from django.db.models.functions import Now

from adiuva import llm
from adiuva.accounts.keys import cipher_for
from adiuva.offline_llm import memory_extraction
from memory import entry_content, episodes, forgetting
from memory.models import Embedding, Entry, EntrySource, Exchange, Memory, SourceKind, Tier
from tests.factories import somebody
from tests.fakes.provider import Fail, Hold, Provider, Request

BEGAN = dt.datetime.now(dt.UTC) - dt.timedelta(hours=3)


@pytest.fixture(autouse=True)
def model(committed_db: str, provider: Provider, settings: LazySettings) -> Iterator[Provider]:
    settings.MODEL = provider.settings()
    provider.memory = by_rules
    yield provider


@pytest.fixture
def user() -> uuid.UUID:
    return somebody().id


def by_rules(request: Request) -> dict[str, Any]:
    return memory_extraction.summarize_lines(request.body["messages"], "conversation", "user: ")


def said(
    user: uuid.UUID,
    message: str,
    minutes: float,
    *,
    place: uuid.UUID | None = None,
    seq: int = 1,
    read: bool = True,
) -> uuid.UUID:
    """An exchange, so many minutes after the session began; a request if no conversation is given. Its source."""
    row = Exchange(
        user_id=user,
        kind=SourceKind.CONVERSATION if place else SourceKind.REQUEST,
        source_id=place or uuid.uuid4(),
        seq=seq if place else None,
        said_at=BEGAN + dt.timedelta(minutes=minutes),
        recorded_at=Now() if read else None,
    )
    Exchange.sealed.seal_into(cipher_for(user), row, {"said": [message], "answer": "All right."})
    row.save()
    return row.source_id


def make(user: uuid.UUID) -> int:
    async def work() -> int:
        try:
            return await episodes.write_due(user)
        finally:
            await llm.aclose()

    return asyncio.run(work())


def told(user: uuid.UUID) -> list[str]:
    cipher = cipher_for(user)
    found = Entry.objects.of(user).filter(tier=Tier.EPISODIC).order_by("began_at", "valid_from")
    return [entry_content.unseal_entry(entry, cipher).content for entry in found]


def anew(user: uuid.UUID) -> None:
    Exchange.objects.filter(user_id=user).update(lease_until=BEGAN)


def test_an_idle_conversation_becomes_one_episode_and_its_exchanges_are_deleted(user: uuid.UUID) -> None:
    place = uuid.uuid4()
    for number in range(3):
        said(user, f"Plan part {number}", 5 * number, place=place, seq=2 * number + 1)
    assert make(user) == 1
    (entry,) = Entry.objects.of(user)
    assert told(user) == ["Plan part 0\nPlan part 1\nPlan part 2"]
    assert (entry.tier, entry.began_at, entry.ended_at) == (
        Tier.EPISODIC,
        BEGAN,
        BEGAN + dt.timedelta(minutes=10),
    )
    assert [(source.source_id, source.seq) for source in entry.sources.all()] == [
        (place, 1),
        (place, 3),
        (place, 5),
    ]
    assert not Exchange.objects.filter(user_id=user).exists()
    assert make(user) == 0
    forgetting.forget_source(user_id=user, kind=SourceKind.CONVERSATION, source_id=place)
    assert not Entry.objects.of(user).exists()
    assert not Embedding.objects.filter(user_id=user).exists()


def test_requests_are_grouped_into_episodes_by_pauses(user: uuid.UUID) -> None:
    place = uuid.uuid4()
    for message, minutes in (("Monday one", 0), ("Monday two", 20), ("Later one", 60), ("Later two", 80)):
        said(user, message, minutes)
    said(user, "Elsewhere", 10, place=place)
    assert make(user) == 3
    assert told(user) == ["Monday one\nMonday two", "Elsewhere", "Later one\nLater two"]


@pytest.mark.parametrize("why", ["not quiet", "not read"])
def test_a_conversation_that_is_active_or_unread_gets_no_episode_yet(user: uuid.UUID, why: str) -> None:
    place = uuid.uuid4()
    said(user, "Plan", 0, place=place)
    said(user, "Plan more", 1, place=place, seq=3, read=why != "not read")
    if why == "not quiet":
        Exchange.objects.filter(user_id=user).update(said_at=Now())
    assert make(user) == 0
    assert Exchange.objects.filter(user_id=user).count() == 2


def test_an_empty_summary_writes_no_episode(user: uuid.UUID, provider: Provider) -> None:
    said(user, "Hello", 0)
    provider.memory = {"summary": "  "}
    assert make(user) == 1
    assert told(user) == []
    assert not Exchange.objects.filter(user_id=user).exists()


def test_one_of_two_workers_writes_the_episode(user: uuid.UUID, provider: Provider) -> None:
    said(user, "Plan", 0)
    hold = Hold({"summary": "the late one"})

    async def both() -> None:
        provider.memory = hold
        late = asyncio.create_task(episodes.write_due(user))
        await asyncio.to_thread(hold.reached.wait, 10)
        provider.memory = by_rules
        assert await episodes.write_due(user) == 0
        await asyncio.to_thread(anew, user)  # as if the first had hung for long
        assert await episodes.write_due(user) == 1
        hold.release()
        assert await late == 0
        await llm.aclose()

    asyncio.run(both())
    assert told(user) == ["Plan"]


def test_exchanges_forgotten_while_the_model_answers_write_no_episode(
    user: uuid.UUID, provider: Provider
) -> None:
    gone = said(user, "The secret plan", 0)
    said(user, "The other plan", 5)
    hold = Hold(by_rules)

    async def work() -> None:
        provider.memory = hold
        task = asyncio.create_task(episodes.write_due(user))
        await asyncio.to_thread(hold.reached.wait, 10)
        await asyncio.to_thread(
            forgetting.forget_source, user_id=user, kind=SourceKind.REQUEST, source_id=gone
        )
        provider.memory = by_rules
        hold.release()
        await task
        await llm.aclose()

    asyncio.run(work())
    assert told(user) == ["The other plan"]
    assert not Exchange.objects.filter(user_id=user).exists()


@pytest.mark.parametrize("configured", [True, False])
def test_an_unavailable_model_is_asked_again_and_finally_done_without(
    user: uuid.UUID, provider: Provider, settings: LazySettings, configured: bool
) -> None:
    if not configured:
        settings.MODEL = {"model": ""}
    place = uuid.uuid4()
    said(user, "Plan", 0, place=place)
    said(user, "Plan more " * 50, 1, place=place, seq=3)
    provider.memory = Fail(401)
    assert make(user) == 0
    assert make(user) == 0  # not at once
    assert len(provider.memories) == configured
    Exchange.objects.filter(user_id=user).update(said_at=BEGAN - dt.timedelta(hours=24))
    anew(user)
    assert make(user) == 1
    assert len(provider.memories) == configured
    (summary,) = told(user)
    assert summary.startswith("The user said:\n- Plan")
    assert len(summary) < 300


def test_an_unusable_answer_leaves_the_users_own_words(user: uuid.UUID, provider: Provider) -> None:
    said(user, "Plan", 0)
    provider.memory = {"summary": ["no", "text"]}
    assert make(user) == 1
    assert told(user) == ["The user said:\n- Plan"]
    assert len(provider.memories) == 2


def test_a_provider_that_may_not_read_episodes_is_not_asked_for_one(
    user: uuid.UUID, provider: Provider
) -> None:
    Memory.objects.create(pk=user, policy={"episodic": []})
    said(user, "Plan", 0)
    assert make(user) == 1
    assert told(user) == ["The user said:\n- Plan"]
    assert provider.memories == []


def test_the_sweep_enqueues_users_with_idle_conversations(user: uuid.UUID) -> None:
    before = episodes.enqueue_due()
    said(user, "Plan", 0)
    said(user, "Plan more", 1)
    assert episodes.enqueue_due() == before + 1


def test_a_run_gets_one_episode(user: uuid.UUID) -> None:
    run = {"user_id": user, "run_id": uuid.uuid4(), "began_at": BEGAN, "ended_at": BEGAN}
    found = {"found": {"tasks": 12, "notes": 0}}
    another = run | {"run_id": uuid.uuid4()}
    kept = episodes.remember_run(agent="Mail", **found, **run)
    assert kept is not None
    assert episodes.remember_run(agent="Mail", **found, **run) is None
    assert episodes.remember_run(agent="Mail", found={"tasks": 0}, **another) is None
    assert told(user) == ["The agent “Mail” found 12 tasks."]
    assert EntrySource.objects.get(entry=kept.entry).kind == SourceKind.RUN
    Memory.objects.filter(pk=user).update(enabled=False)
    assert episodes.remember_run(agent="Mail", **found, **another) is None
