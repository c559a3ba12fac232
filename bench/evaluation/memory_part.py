"""Memory: conversations in which a user tells about themselves, then questions about what was said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from adiuva.core import db
from bench.evaluation.cases import Question, Session
from bench.evaluation.participant import Participant, participant
from bench.evaluation.texts import holds, holds_any

_LOOK_EVERY_S: Final = 0.05
# How models say that they do not know, in the languages of the questions.
_NOT_KNOWN: Final = (
    "don't know|do not know|don't have|do not have|no information|not told|haven't told|have not told|no record"
    "|not mentioned|haven't mentioned|have not mentioned|not sure|nothing about|no mention|unknown|not remember"
    "|weiss nicht|weiß nicht|keine information|nicht erwähnt|nichts darüber|non lo so|non so|nessuna informazione"
)


@dataclass
class MemoryResult:
    """For each question, what is wrong with its answer; and seconds of recording, in which nobody was asked."""

    faults: list[tuple[Question, list[str]]] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    failed_turns: list[str] = field(default_factory=list)
    entries: int = 0
    recording_s: float = 0.0


async def remember_sessions(
    web: str,
    sessions: Sequence[Session],
    questions: Sequence[Question],
    rows: Mapping[str, Any],
    *,
    patience_s: float = 1800,
    answer_s: float = 600,
) -> MemoryResult:
    """Hold the conversations one after the other, each recorded before the next; then ask, each in a new one."""
    result, places = MemoryResult(), dict[str, str]()
    async with participant(web, rows=rows, is_known=False, answer_s=answer_s) as user:
        for session in sessions:
            place = None
            for said in session.said:
                told = await user.ask(said, conversation_id=place)
                place = told.conversation_id or place
                if told.code:
                    result.failed_turns.append(f"{session.id}: {told.code}")
            places[session.id] = place or ""
            began = time.monotonic()
            await _recorded(user, patience_s)
            result.recording_s += time.monotonic() - began
        entries = await _entries(user)
        result.entries = len(entries)
        for question in questions:
            if question.kind == "source":
                faults = await _source_faults(user, question, entries, places)
            else:
                told = await user.ask(question.ask)
                result.answers[question.id] = told.text
                faults = [f"ended with {told.code}"] if told.code else answer_faults(question, told.text)
            result.faults.append((question, faults))
    return result


def answer_faults(question: Question, text: str) -> list[str]:
    """What is wrong with an answer to a question."""
    faults = [f"says {term}" for term in holds_any(text, question.never)]
    if question.kind == "unknown":
        if not holds(text, [_NOT_KNOWN]):
            faults.append("does not say that it is not known")
    elif not holds(text, question.answer):
        faults.append(f"does not say {', '.join(question.answer)}")
    return faults


async def _source_faults(
    user: Participant, question: Question, entries: Sequence[Mapping[str, Any]], places: Mapping[str, str]
) -> list[str]:
    """Whether an entry with the answer names the conversation in which it was said."""
    holding = [entry for entry in entries if holds(str(entry["content"]), question.answer)]
    if not holding:
        return [f"no entry says {', '.join(question.answer)}"]
    for entry in holding:
        whole = (await user.rest.get(f"/memory/{entry['tier']}/{entry['id']}")).json()
        if any(source["id"] == places[question.session] for source in whole["sources"]):
            return []
    return [f"no entry names {question.session} as its source"]


async def _entries(user: Participant) -> list[dict[str, Any]]:
    """All entries that were recorded from what was said, former ones too."""
    found: list[dict[str, Any]] = []
    for tier in ("core", "associative"):
        url: str | None = f"/memory/{tier}?current=all"
        while url:
            page = await user.rest.get(url)
            found += [entry | {"tier": tier} for entry in page.json()]
            url = page.links.get("next", {}).get("url")
    return found


async def _recorded(user: Participant, patience_s: float) -> None:
    from adiuva.core.enqueue import enqueue_on_commit

    await db.run(enqueue_on_commit, "memory.record", user.person.id)  # without the wait for a quiet minute

    def waits() -> bool:
        from memory.models import Exchange

        return Exchange.objects.filter(user_id=user.person.id, recorded_at=None).exists()

    async with asyncio.timeout(patience_s):
        while await db.run(waits):
            await asyncio.sleep(_LOOK_EVERY_S)
