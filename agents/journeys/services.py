"""Start a journey, take an answer, go back a question, and end with a proposed agent and its trial.

No row is locked while the model answers. If two messages for one journey arrive at once, the first to be written
counts, and the other gets JourneyMovedOn with the present question.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from zoneinfo import ZoneInfo

import structlog
from django.db.models import F
from django.db.models.functions import Now
from django.utils.translation import gettext
from pydantic import BaseModel

from adiuva import llm
from adiuva.accounts.keys import cipher_for
from adiuva.accounts.models import User
from adiuva.core import db
from adiuva.core.errors import Conflict, Invalid, NotFound
from adiuva.core.pruning import delete_in_batches
from agents import plan_limits, services
from agents.journeys import interview, mailbox_choice
from agents.journeys.interview import AgentProposal, AnsweredQuestion, InterviewBrief, Question
from agents.journeys.mailbox_choice import Mailbox
from agents.journeys.samples import SampleRequest
from agents.journeys.trial import TrialResult, run_trial, trial_summary
from agents.models import Agent, AgentType, JourneySession
from billing import usage
from billing.models import Purpose
from memory.profile import read_profile

# Counted from the last message.
JOURNEY_LIFETIME: Final = dt.timedelta(hours=1)
# For one step of the interview, including a repaired answer.
_MODEL_TIMEOUT_S: Final = 40.0

log = structlog.get_logger(__name__)


class JourneyState(BaseModel):
    """The sealed state of a journey. `answered`: questions with their answers; `question`: the open one, "" once there
    is a proposal. `mailboxes`: those among which the user chooses; `connection_id`: the chosen one.
    """

    mailboxes: list[Mailbox] = []
    connection_id: uuid.UUID | None = None
    answered: list[AnsweredQuestion] = []
    question: str = ""
    proposal: AgentProposal | None = None
    trial: TrialResult | None = None

    def back(self) -> JourneyState:
        """Return the state at the previous question, without its answer; unchanged at the first question."""
        if not self.answered:
            return self
        return self.step(answered=self.answered[:-1], question=self.answered[-1].question)

    def step(self, **changes: Any) -> JourneyState:
        """Return the state after another step of the interview, about the same mailbox."""
        return JourneyState(mailboxes=self.mailboxes, connection_id=self.connection_id, **changes)


@dataclass(frozen=True)
class Journey:
    """A JourneySession, unsealed. `turn`, as clients call it, is the row's version: it counts the steps.

    `agent_type` is None, and `brief` without meaning, until the user has chosen a mailbox.
    """

    id: uuid.UUID
    user_id: uuid.UUID
    turn: int
    state: JourneyState
    agent_type: AgentType | None
    brief: InterviewBrief
    agent_id: uuid.UUID | None
    zone: ZoneInfo

    def body(self) -> dict[str, Any]:
        """Return the journey as REST shows it, in the active language."""
        state = self.state
        body: dict[str, Any] = {"session_id": str(self.id), "turn": self.turn}
        if state.proposal is None:
            return body | {"message": state.question, "done": False}
        trial = state.trial or TrialResult()
        message = " ".join(
            [gettext("This is what the agent would do."), *state.proposal.notes, trial_summary(trial)]
        )
        return body | {
            "message": message,
            "done": True,
            "agent_kind": self.brief.agent_type.value,
            "connection": state.connection_id and str(state.connection_id),
            **state.proposal.model_dump(),
            "found": trial.model_dump(),
        }


class NoSuchJourney(NotFound):
    code = "journey_not_found"

    def __init__(self) -> None:
        super().__init__("there is no such journey, or it is over: begin a new one")


class JourneyMovedOn(Conflict):
    """Another message was taken first. The error body holds the present question."""

    code = "journey_moved_on"

    def __init__(self, now: Journey) -> None:
        super().__init__(
            "this journey has moved on: answer the present question",
            question=now.state.question,
            done=now.state.proposal is not None,
            turn=now.turn,
        )


async def start(*, user_id: uuid.UUID, kind: str, agent_id: uuid.UUID | None = None) -> Journey:
    """Ask the first question. `kind`: an AgentType, or an AgentFamily as deployed clients name it.

    Raises NotFound for an agent that is not the user's, Invalid for one of another type or where no mailbox is
    connected, QuotaExceeded where the plan has no room for another agent, and ModelError or JourneyUnclear if the model
    asks nothing; then no journey is stored.
    """
    if agent_id is None:
        await db.run(plan_limits.check_new, user_id)
    begun = await db.run(mailbox_choice.begin, user_id, kind, agent_id)
    state = JourneyState(mailboxes=begun.mailboxes, connection_id=begun.connection_id)
    if begun.agent_type is None:
        state.question = mailbox_choice.question(state.mailboxes)
    else:
        brief = await db.run(_brief_of, user_id, begun.agent_type, agent_id)
        state.question = await _first_question(user_id, brief)
    return await db.run(_create, user_id, begun.agent_type, agent_id, state)


async def _first_question(user_id: uuid.UUID, brief: InterviewBrief) -> str:
    step = await _next_step(user_id, brief, [])
    assert isinstance(step, Question)
    return step.text


async def answer(
    *, user_id: uuid.UUID, session_id: str, message: str, back: bool = False, turn: int | None = None
) -> Journey:
    """Take an answer to the present question, or go back to the previous one.

    `turn` is that of the question being answered: an answer that is sent again is not taken twice, and returns what it
    led to. Raises NoSuchJourney, JourneyMovedOn, Invalid for an empty answer, and what `start` raises; then nothing has
    changed.
    """
    journey = await db.run(_read, user_id, session_id)
    state = journey.state
    if turn is not None and turn != journey.turn:
        if turn != journey.turn - 1 or back or not state.answered or state.answered[-1].answer != message:
            raise JourneyMovedOn(journey)
    elif back:
        return await _go_back(journey)
    elif state.proposal is None:
        if not message:
            raise Invalid("there is no answer in the message", fields={"message": ["This may not be blank."]})
        if journey.agent_type is None:
            return await _choose_mailbox(journey, message)
        if journey.agent_id is None:
            await db.run(plan_limits.check_new, user_id)
        answered = [*state.answered, AnsweredQuestion(question=state.question, answer=message)]
        match await _next_step(user_id, journey.brief, answered):
            case Question(text):
                state = state.step(answered=answered, question=text)
            case AgentProposal() as proposal:
                state = state.step(answered=answered, proposal=proposal)
            case _:
                state = state.back()
        journey = await db.run(_write, journey, state)
        log.info(
            "journey.step_taken", session=str(journey.id), turn=journey.turn, questions=len(state.answered)
        )
    return await _with_trial(journey)


async def _go_back(journey: Journey) -> Journey:
    """Go to the previous question: from the first one of the interview to the choice of a mailbox, if there was one."""
    state = journey.state
    if state.answered or not state.mailboxes or journey.agent_type is None:
        return await db.run(_write, journey, state.back())
    state = JourneyState(mailboxes=state.mailboxes, question=mailbox_choice.question(state.mailboxes))
    return await db.run(partial(_write, journey, state, agent_type=""))


async def _choose_mailbox(journey: Journey, message: str) -> Journey:
    """Take the user's choice and ask the first question, or ask again which mailbox is meant."""
    state = journey.state
    chosen = mailbox_choice.chosen(state.mailboxes, message)
    if chosen is None:
        return await db.run(_write, journey, state)
    question = await _first_question(journey.user_id, _brief(chosen.agent_type, None))
    state = JourneyState(mailboxes=state.mailboxes, connection_id=chosen.id, question=question)
    return await db.run(partial(_write, journey, state, agent_type=chosen.agent_type.value))


async def _next_step(
    user_id: uuid.UUID, brief: InterviewBrief, answered: list[AnsweredQuestion]
) -> interview.InterviewStep:
    model = llm.chat_model(purpose="extraction")
    today, profile = await db.run(_about_user, user_id, model)
    try:
        async with usage.metered(user_id, Purpose.JOURNEYS), asyncio.timeout(_MODEL_TIMEOUT_S):
            return await interview.next_step(model, brief, answered, today=today, profile=profile)
    except TimeoutError:
        raise llm.ModelTimeout("the model did not answer in time") from None


async def _with_trial(journey: Journey) -> Journey:
    """Return the journey, with its trial once there is a proposal. A trial that was not stored is made again."""
    state = journey.state
    if state.proposal is None or state.trial is not None:
        return journey
    request = SampleRequest(
        journey.user_id,
        journey.id,
        journey.brief.agent_type,
        journey.agent_id,
        proposal=state.proposal,
        connection_id=state.connection_id,
    )
    async with usage.metered(journey.user_id, Purpose.JOURNEYS, journey.agent_id):
        trial = await run_trial(request, journey.zone)
    return await db.run(_save_trial, journey, state.model_copy(update={"trial": trial}))


# ── Rows ────────────────────────────────────────────────────────────────────────────────────────────────


def _about_user(user_id: uuid.UUID, model: llm.ChatModel) -> tuple[dt.date, str]:
    """Return the user's date, and as much of their profile as this model may read."""
    zone = User.objects.values_list("timezone", flat=True).filter(pk=user_id).first()
    if zone is None:  # deleted meanwhile; storing the next step will fail
        return dt.datetime.now(dt.UTC).date(), ""
    return dt.datetime.now(ZoneInfo(zone)).date(), read_profile(user_id, model)


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
    user_id: uuid.UUID, agent_type: AgentType | None, agent_id: uuid.UUID | None, state: JourneyState
) -> Journey:
    if agent_id is not None:
        services.get_agent(user_id, agent_id)  # the user may have deleted it while the model answered
    row = JourneySession(user_id=user_id, agent_type=agent_type or "", agent_id=agent_id)
    JourneySession.state.seal_into(cipher_for(user_id), row, state.model_dump_json())
    row.expires_at = Now() + JOURNEY_LIFETIME
    row.save(force_insert=True)
    return _read(user_id, str(row.pk))


def _read(user_id: uuid.UUID, session_id: str) -> Journey:
    """Return a journey. Raises NoSuchJourney, also for another user's journey."""
    try:
        key = uuid.UUID(session_id)
    except ValueError:
        raise NoSuchJourney from None
    mine = JourneySession.objects.filter(user_id=user_id, pk=key, expires_at__gt=Now())
    row = mine.select_related("agent").first()
    if row is None:
        raise NoSuchJourney
    zone = User.objects.values_list("timezone", flat=True).get(pk=user_id)
    agent_type = AgentType(row.agent_type) if row.agent_type else None
    brief = _brief(agent_type or AgentType.LOCAL_DIRECTORY, row.agent)
    state = JourneyState.model_validate_json(JourneySession.state.unseal_from(cipher_for(user_id), row))
    return Journey(row.pk, user_id, row.version, state, agent_type, brief, row.agent_id, ZoneInfo(zone))


def _write(journey: Journey, state: JourneyState, **changes: Any) -> Journey:
    """Take a step, unless another was taken meanwhile. Raises JourneyMovedOn, NoSuchJourney."""
    return _save(journey, state, version=F("version") + 1, expires_at=Now() + JOURNEY_LIFETIME, **changes)


def _save_trial(journey: Journey, state: JourneyState) -> Journey:
    """Store the trial, which is no step: a message that was taken meanwhile counts. Raises what `_write` does."""
    return _save(journey, state)


def _save(journey: Journey, state: JourneyState, **changes: Any) -> Journey:
    unchanged = JourneySession.objects.filter(
        user_id=journey.user_id, pk=journey.id, version=journey.turn, expires_at__gt=Now()
    )
    sealed = JourneySession.state.seal(cipher_for(journey.user_id), state.model_dump_json(), journey.id)
    is_saved = unchanged.update(state=sealed, **changes)
    current = _read(journey.user_id, str(journey.id))
    if not is_saved:
        raise JourneyMovedOn(current)
    return current


def delete_expired() -> int:
    """Delete expired journeys. Returns how many."""
    return delete_in_batches(JourneySession.objects.filter(expires_at__lte=Now()).order_by("expires_at"))
