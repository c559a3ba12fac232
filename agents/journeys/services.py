"""The conversation: it begins, is answered, goes back, and ends with a configuration and a look at what that finds.

A step is read, thought about and written, and no row is locked while the model thinks. Of two steps at once the first
that is written counts; the other is told where the journey is now.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from dataclasses import dataclass
from typing import Any, Final
from zoneinfo import ZoneInfo

import structlog
from django.db.models import F
from django.db.models.functions import Now
from pydantic import BaseModel

from adiuva import llm
from adiuva.accounts.keys import cipher_for
from adiuva.accounts.models import User
from adiuva.core import db
from adiuva.core.errors import Conflict, Invalid, NotFound
from agents import services
from agents.journeys import interview
from agents.journeys.interview import AgentProposal, AnsweredQuestion, InterviewBrief, Question
from agents.journeys.samples import SampleRequest
from agents.journeys.trial import TrialResult, run_trial
from agents.models import Agent, AgentType, JourneySession

JOURNEY_LIFETIME: Final = dt.timedelta(hours=1)  # from the last message
_MODEL_TIMEOUT_S: Final = 40.0  # for the model, a repair included
_CLOSING: Final = "This is what the agent would do."

log = structlog.get_logger("agents.journeys")


class JourneyState(BaseModel):
    """What is sealed. `asked` was answered, `question` was not yet; there is none once there is an outcome."""

    asked: list[AnsweredQuestion] = []
    question: str = ""
    outcome: AgentProposal | None = None
    found: TrialResult | None = None

    def back(self) -> JourneyState:
        """At the question before, its answer dropped. The first one has none before it."""
        if not self.asked:
            return self
        return JourneyState(asked=self.asked[:-1], question=self.asked[-1].question)


@dataclass(frozen=True)
class Journey:
    """A row, opened. `turn` is its version: each step that is taken has the next."""

    id: uuid.UUID
    user_id: uuid.UUID
    turn: int
    state: JourneyState
    brief: InterviewBrief
    agent_id: uuid.UUID | None
    zone: ZoneInfo

    def body(self) -> dict[str, Any]:
        """What is told of it."""
        state = self.state
        body: dict[str, Any] = {"session_id": str(self.id), "turn": self.turn}
        if state.outcome is None:
            return body | {"message": state.question, "done": False}
        found = state.found or TrialResult()
        message = " ".join([_CLOSING, *state.outcome.notes, _summary(found)])
        return body | {
            "message": message,
            "done": True,
            **state.outcome.model_dump(),
            "found": found.model_dump(),
        }


class NoSuchJourney(NotFound):
    code = "journey_not_found"

    def __init__(self) -> None:
        super().__init__("there is no such journey, or it is over: begin a new one")


class JourneyMovedOn(Conflict):
    """Another message was taken first. The answer says where the journey is now."""

    code = "journey_moved_on"

    def __init__(self, now: Journey) -> None:
        super().__init__(
            "this journey has moved on: answer the present question",
            question=now.state.question,
            done=now.state.outcome is not None,
            turn=now.turn,
        )


async def start(*, user_id: uuid.UUID, agent_type: AgentType, agent_id: uuid.UUID | None = None) -> Journey:
    """Ask the first question. Raise NotFound for an agent that is not the user's, Invalid for one of another type, a
    ModelError or JourneyUnclear when the model asks nothing; then there is no session."""
    brief = await db.run(_brief_of, user_id, agent_type, agent_id)
    step = await _next_step(brief, [])
    assert isinstance(step, Question)
    return await db.run(_create, user_id, agent_type, agent_id, JourneyState(question=step.text))


async def answer(
    *, user_id: uuid.UUID, session_id: str, message: str, back: bool = False, turn: int | None = None
) -> Journey:
    """Take an answer to the present question, or go back to the one before. `turn` is that of the question that is
    answered; an answer that was taken already is not taken again, and what it led to is told once more.

    Raise NoSuchJourney, MovedOn, Invalid for an empty answer, and as `start`; then nothing has changed.
    """
    session = await db.run(_read, user_id, session_id)
    state = session.state
    if turn is not None and turn != session.turn:
        if turn != session.turn - 1 or back or not state.asked or state.asked[-1].answer != message:
            raise JourneyMovedOn(session)
    elif back:
        return await db.run(_write, session, state.back())
    elif state.outcome is None:
        if not message:
            raise Invalid("there is no answer in the message", fields={"message": ["This may not be blank."]})
        asked = [*state.asked, AnsweredQuestion(question=state.question, answer=message)]
        match await _next_step(session.brief, asked):
            case Question(text):
                state = JourneyState(asked=asked, question=text)
            case AgentProposal() as outcome:
                state = JourneyState(asked=asked, outcome=outcome)
            case _:
                state = state.back()
        session = await db.run(_write, session, state)
        log.info("journey.step", session=str(session.id), turn=session.turn, questions=len(state.asked))
    return await _with_trial(session)


async def _next_step(brief: InterviewBrief, said: list[AnsweredQuestion]) -> interview.InterviewStep:
    try:
        async with asyncio.timeout(_MODEL_TIMEOUT_S):
            return await interview.next_step(llm.chat_model(), brief, said)
    except TimeoutError:
        raise llm.ModelTimeout("the model did not answer in time") from None


async def _with_trial(session: Journey) -> Journey:
    """With what the configuration finds, once there is one. It is looked for once, unless nobody wrote it down."""
    state = session.state
    if state.outcome is None or state.found is not None:
        return session
    wanted = SampleRequest(
        session.user_id, session.id, session.brief.agent_type, session.agent_id, outcome=state.outcome
    )
    found = await run_trial(wanted, session.zone)
    return await db.run(_save_trial, session, state.model_copy(update={"found": found}))


def _summary(found: TrialResult) -> str:
    """What the look found, in a sentence."""
    if not found.sources and found.message:
        return found.message
    counted = ", ".join(f"{count} {table}" for table, count in found.counts.items()) or "nothing"
    documents = "1 document" if len(found.sources) == 1 else f"{len(found.sources)} documents"
    return f"In {documents} of yours it finds: {counted}. {found.message}".strip()


# ── Rows ────────────────────────────────────────────────────────────────────────────────────────────────


def _brief_of(user_id: uuid.UUID, agent_type: AgentType, agent_id: uuid.UUID | None) -> InterviewBrief:
    agent = services.get_agent(user_id, agent_id) if agent_id else None
    if agent is not None and agent.type != agent_type:
        raise Invalid("this agent is of another type", fields={"agent_type": ["Not the agent's."]})
    return _brief(agent_type, agent)


def _brief(agent_type: AgentType, agent: Agent | None) -> InterviewBrief:
    if agent is None:
        return InterviewBrief(agent_type)
    own = "file_extensions" if agent_type == AgentType.LOCAL_DIRECTORY else "filter_config"
    names = ("name", "data_types", "prompt_template", "schedule_cron", own)
    return InterviewBrief(agent_type, {name: getattr(agent, name) for name in names})


def _create(
    user_id: uuid.UUID, agent_type: AgentType, agent_id: uuid.UUID | None, state: JourneyState
) -> Journey:
    if agent_id is not None:
        services.get_agent(user_id, agent_id)  # it may have gone while the model thought
    row = JourneySession(user_id=user_id, agent_type=agent_type, agent_id=agent_id)
    row.sealed = _sealed(user_id, row.pk, state)
    row.expires_at = Now() + JOURNEY_LIFETIME  # by the database's clock
    row.save(force_insert=True)
    return _read(user_id, str(row.pk))


def _read(user_id: uuid.UUID, session_id: str) -> Journey:
    """Raise NoSuchJourney, for another's as for none."""
    try:
        key = uuid.UUID(session_id)
    except ValueError:
        raise NoSuchJourney from None
    mine = JourneySession.objects.filter(user_id=user_id, pk=key, expires_at__gt=Now())
    row = mine.select_related("agent").first()
    if row is None:
        raise NoSuchJourney
    opened = cipher_for(user_id).unseal(row.sealed, *_place(row.pk))
    zone = User.objects.values_list("timezone", flat=True).get(pk=user_id)
    brief = _brief(AgentType(row.agent_type), row.agent)
    state = JourneyState.model_validate_json(opened)
    return Journey(row.pk, user_id, row.version, state, brief, row.agent_id, ZoneInfo(zone))


def _write(session: Journey, state: JourneyState) -> Journey:
    """Take a step, if nobody took one meanwhile. Raise MovedOn, NoSuchJourney."""
    if not _unmoved(session).update(
        sealed=_sealed(session.user_id, session.id, state),
        version=F("version") + 1,
        expires_at=Now() + JOURNEY_LIFETIME,
    ):
        raise JourneyMovedOn(_read(session.user_id, str(session.id)))
    return _read(session.user_id, str(session.id))


def _save_trial(session: Journey, state: JourneyState) -> Journey:
    """It is no step: a message that was taken meanwhile counts. Raise MovedOn, NoSuchJourney."""
    if not _unmoved(session).update(sealed=_sealed(session.user_id, session.id, state)):
        raise JourneyMovedOn(_read(session.user_id, str(session.id)))
    return _read(session.user_id, str(session.id))


def _unmoved(session: Journey) -> Any:
    return JourneySession.objects.filter(
        user_id=session.user_id, pk=session.id, version=session.turn, expires_at__gt=Now()
    )


def _sealed(user_id: uuid.UUID, key: uuid.UUID, state: JourneyState) -> bytes:
    return cipher_for(user_id).seal(state.model_dump_json(), *_place(key))


def _place(key: uuid.UUID) -> tuple[str, uuid.UUID, str]:
    return "agents_journeysession", key, "sealed"


def delete_expired() -> int:
    """Forget journeys that ended. Returns how many."""
    return JourneySession.objects.filter(expires_at__lte=Now()).delete()[0]
