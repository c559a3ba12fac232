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
from agents.journeys.interview import Brief, Exchange, Outcome, Question
from agents.journeys.samples import Wanted
from agents.journeys.trial import Found, look
from agents.models import Agent, AgentType, JourneySession

LIFE: Final = dt.timedelta(hours=1)  # from the last message
_ASK_S: Final = 40.0  # for the model, a repair included
_CLOSING: Final = "This is what the agent would do."

log = structlog.get_logger("agents.journeys")


class State(BaseModel):
    """What is sealed. `asked` was answered, `question` was not yet; there is none once there is an outcome."""

    asked: list[Exchange] = []
    question: str = ""
    outcome: Outcome | None = None
    found: Found | None = None

    def back(self) -> State:
        """At the question before, its answer dropped. The first one has none before it."""
        if not self.asked:
            return self
        return State(asked=self.asked[:-1], question=self.asked[-1].question)


@dataclass(frozen=True)
class Session:
    """A row, opened. `turn` is its version: each step that is taken has the next."""

    id: uuid.UUID
    user_id: uuid.UUID
    turn: int
    state: State
    brief: Brief
    agent_id: uuid.UUID | None
    zone: ZoneInfo

    def body(self) -> dict[str, Any]:
        """What is told of it."""
        state = self.state
        body: dict[str, Any] = {"session_id": str(self.id), "turn": self.turn}
        if state.outcome is None:
            return body | {"message": state.question, "done": False}
        found = state.found or Found()
        message = " ".join([_CLOSING, *state.outcome.notes, _in_words(found)])
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


class MovedOn(Conflict):
    """Another message was taken first. The answer says where the journey is now."""

    code = "journey_moved_on"

    def __init__(self, now: Session) -> None:
        super().__init__(
            "this journey has moved on: answer the present question",
            question=now.state.question,
            done=now.state.outcome is not None,
            turn=now.turn,
        )


async def start(*, user_id: uuid.UUID, agent_type: AgentType, agent_id: uuid.UUID | None = None) -> Session:
    """Ask the first question. Raise NotFound for an agent that is not the user's, Invalid for one of another type, a
    ModelError or JourneyUnclear when the model asks nothing; then there is no session."""
    brief = await db.run(_brief_of, user_id, agent_type, agent_id)
    step = await _ask(brief, [])
    assert isinstance(step, Question)
    return await db.run(_create, user_id, agent_type, agent_id, State(question=step.text))


async def answer(
    *, user_id: uuid.UUID, session_id: str, message: str, back: bool = False, turn: int | None = None
) -> Session:
    """Take an answer to the present question, or go back to the one before. `turn` is that of the question that is
    answered; an answer that was taken already is not taken again, and what it led to is told once more.

    Raise NoSuchJourney, MovedOn, Invalid for an empty answer, and as `start`; then nothing has changed.
    """
    session = await db.run(_read, user_id, session_id)
    state = session.state
    if turn is not None and turn != session.turn:
        if turn != session.turn - 1 or back or not state.asked or state.asked[-1].answer != message:
            raise MovedOn(session)
    elif back:
        return await db.run(_write, session, state.back())
    elif state.outcome is None:
        if not message:
            raise Invalid("there is no answer in the message", fields={"message": ["This may not be blank."]})
        asked = [*state.asked, Exchange(question=state.question, answer=message)]
        match await _ask(session.brief, asked):
            case Question(text):
                state = State(asked=asked, question=text)
            case Outcome() as outcome:
                state = State(asked=asked, outcome=outcome)
            case _:
                state = state.back()
        session = await db.run(_write, session, state)
        log.info("journey.step", session=str(session.id), turn=session.turn, questions=len(state.asked))
    return await _with_a_look(session)


async def _ask(brief: Brief, said: list[Exchange]) -> interview.Step:
    try:
        async with asyncio.timeout(_ASK_S):
            return await interview.ask(llm.chat_model(), brief, said)
    except TimeoutError:
        raise llm.ModelTimeout("the model did not answer in time") from None


async def _with_a_look(session: Session) -> Session:
    """With what the configuration finds, once there is one. It is looked for once, unless nobody wrote it down."""
    state = session.state
    if state.outcome is None or state.found is not None:
        return session
    wanted = Wanted(
        session.user_id, session.id, session.brief.agent_type, session.agent_id, outcome=state.outcome
    )
    found = await look(wanted, session.zone)
    return await db.run(_keep_found, session, state.model_copy(update={"found": found}))


def _in_words(found: Found) -> str:
    """What the look found, in a sentence."""
    if not found.sources and found.message:
        return found.message
    counted = ", ".join(f"{count} {table}" for table, count in found.counts.items()) or "nothing"
    documents = "1 document" if len(found.sources) == 1 else f"{len(found.sources)} documents"
    return f"In {documents} of yours it finds: {counted}. {found.message}".strip()


# ── Rows ────────────────────────────────────────────────────────────────────────────────────────────────


def _brief_of(user_id: uuid.UUID, agent_type: AgentType, agent_id: uuid.UUID | None) -> Brief:
    agent = services.of_user(user_id, agent_id) if agent_id else None
    if agent is not None and agent.type != agent_type:
        raise Invalid("this agent is of another type", fields={"agent_type": ["Not the agent's."]})
    return _brief(agent_type, agent)


def _brief(agent_type: AgentType, agent: Agent | None) -> Brief:
    if agent is None:
        return Brief(agent_type)
    own = "file_extensions" if agent_type == AgentType.LOCAL_DIRECTORY else "filter_config"
    names = ("name", "data_types", "prompt_template", "schedule_cron", own)
    return Brief(agent_type, {name: getattr(agent, name) for name in names})


def _create(user_id: uuid.UUID, agent_type: AgentType, agent_id: uuid.UUID | None, state: State) -> Session:
    if agent_id is not None:
        services.of_user(user_id, agent_id)  # it may have gone while the model thought
    row = JourneySession(user_id=user_id, agent_type=agent_type, agent_id=agent_id)
    row.sealed = _sealed(user_id, row.pk, state)
    row.expires_at = Now() + LIFE  # by the database's clock
    row.save(force_insert=True)
    return _read(user_id, str(row.pk))


def _read(user_id: uuid.UUID, session_id: str) -> Session:
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
    state = State.model_validate_json(opened)
    return Session(row.pk, user_id, row.version, state, brief, row.agent_id, ZoneInfo(zone))


def _write(session: Session, state: State) -> Session:
    """Take a step, if nobody took one meanwhile. Raise MovedOn, NoSuchJourney."""
    if not _unmoved(session).update(
        sealed=_sealed(session.user_id, session.id, state), version=F("version") + 1, expires_at=Now() + LIFE
    ):
        raise MovedOn(_read(session.user_id, str(session.id)))
    return _read(session.user_id, str(session.id))


def _keep_found(session: Session, state: State) -> Session:
    """It is no step: a message that was taken meanwhile counts. Raise MovedOn, NoSuchJourney."""
    if not _unmoved(session).update(sealed=_sealed(session.user_id, session.id, state)):
        raise MovedOn(_read(session.user_id, str(session.id)))
    return _read(session.user_id, str(session.id))


def _unmoved(session: Session) -> Any:
    return JourneySession.objects.filter(
        user_id=session.user_id, pk=session.id, version=session.turn, expires_at__gt=Now()
    )


def _sealed(user_id: uuid.UUID, key: uuid.UUID, state: State) -> bytes:
    return cipher_for(user_id).seal(state.model_dump_json(), *_place(key))


def _place(key: uuid.UUID) -> tuple[str, uuid.UUID, str]:
    return "agents_journeysession", key, "sealed"


def sweep() -> int:
    """Forget journeys that ended. Returns how many."""
    return JourneySession.objects.filter(expires_at__lte=Now()).delete()[0]
