"""Produces a turn's answer: loads the facts about the user and the device, and runs the model to its last word.

Clients reach chat.turn around it; this is what the model sees and does.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Final
from zoneinfo import ZoneInfo

import structlog
from django.conf import settings
from django.utils import translation
from django.utils.formats import date_format
from django.utils.translation import gettext
from langchain_core.messages import HumanMessage

from adiuva import llm
from adiuva.core import db
from adiuva.core.language import language_of
from adiuva.devices.link import DeviceLink
from adiuva.devices.protocol import ApprovalRequest, Domain, Mutation, Notice, RunEnded, Usage
from billing import budgets, usage
from billing.budgets import BudgetedMeter
from billing.models import Purpose
from chat import approvals, claimed_turn, deferred_calls, history
from chat.agent_loop import OutputHooks, answer_request
from chat.agent_tool_context import AGENTS, AgentWork
from chat.answer_claims import claims_a_change
from chat.approvals import Approvals
from chat.assistants import FOLLOW_UP, supervisor
from chat.claimed_turn import ClaimedTurn, NewSummary
from chat.deferred_calls import DeferredCall
from chat.device_session import DeviceSession
from chat.end_messages import said_in_answer
from chat.foreign_text import CONTEXT, ForeignTexts
from chat.history import FittedHistory
from chat.memory_context import MEMORY, MemoryContext
from chat.models import AssistantKind
from chat.prompts import turn_prompt
from chat.request import ChatRequest
from chat.run_notes import RunNotes
from chat.steering import SteerQueue
from chat.stream import Stream
from chat.tools import present_call, resolve_call
from chat.tools.agent_texts import RUN_TABLE
from chat.turn_changes import TurnRecord
from chat.turn_context import LimitReached, ToolInvocation, TurnContext
from chat.turn_messages import MAX_SCOPE_CHARS, SCOPE_TABLES, describe_scope, first_messages
from chat.turn_output import TurnOutput
from chat.untrusted_text import quotable
from chat.user_intent import UserWords

log = structlog.get_logger(__name__)

DOMAINS: Final[dict[str, Domain]] = {
    "tasks": "tasks",
    "taskComments": "tasks",
    "projects": "projects",
    "clients": "projects",
    "notes": "notes",
    "timelines": "timelines",
}


# The most model calls of a turn that follows up a run.
_MOST_CALLS_OF_FOLLOW_UP: Final = 6
_MOST_S_OF_FOLLOW_UP: Final = 120.0


def _last_answer_s(deadline_s: float) -> float:
    """Return how much of a turn's time is kept for an answer: then the turn stops waiting for tools."""
    return min(30.0, deadline_s / 5)


def domain_of(request: ChatRequest) -> Domain | None:
    """Return the domain of a floating request that is about one row."""
    table = SCOPE_TABLES.get(request.scope.type) if request.scope is not None else None
    return DOMAINS[table] if table else None


# More than 15 methods: the hooks of the agent loop and the remarks at the end all act on the same state.
class TurnAnswer:
    """A turn's answer: `work()` produces it; then `conclude()` says what the model has left out.

    `mutations`: the turn's changes on the device so far. `foreign`: the texts that it has read and that the user did
    not write. `notices`: what was said below the answer, or would have been again. `has_answered`: whether the user was
    shown an answer since the last tool was called.
    """

    def __init__(
        self,
        request: ChatRequest,
        claimed: ClaimedTurn,
        *,
        stream: Stream,
        output: TurnOutput,
        steers: SteerQueue,
        notes: RunNotes,
        announce: Callable[[ApprovalRequest], Awaitable[None]],
        send_notices: Callable[[Sequence[RunEnded]], None],
    ) -> None:
        """`announce` shows a question for the user's yes on their other devices too. `send_notices` sends the ended
        runs to devices that take such frames.
        """
        self.request, self.claimed = request, claimed
        self.stream, self.output = stream, output
        self.meter = budgets.meter_for(
            request.user_id,
            Purpose.CHAT if request.origin is None else Purpose.FOLLOWUPS,
            keeps_answer=True,
            lasts_s=settings.CHAT["turn_deadline_s"],
        )
        if claimed.held is not None and isinstance(self.meter, BudgetedMeter):
            self.meter.start_with(claimed.held)
        self.mutations: list[Mutation] = []
        self.notices: list[Notice] = []
        self.has_answered = False
        self.foreign = ForeignTexts(earlier=claimed.has_foreign)
        if request.context:
            self.foreign.add(CONTEXT)
        self._steers, self._notes = steers, notes
        self._send_notices = send_notices
        self._announce = announce
        self._conclude_at: float | None = None
        # Set as the work proceeds; None if it ended before.
        self._approvals: Approvals | None = None
        self._session: DeviceSession | None = None
        self._history: FittedHistory | None = None
        self._context: TurnContext | None = None
        self._memory: MemoryContext | None = None
        self._agent_work: AgentWork | None = None
        self._recall: asyncio.Task[str | None] | None = None

    # ── The work ────────────────────────────────────────────────────────────────────────────────────────

    async def work(self) -> None:
        """Work out the answer. Raises LimitReached, and any error that ends a turn."""
        translation.activate(language_of(self.claimed.locale))  # for this task, and those that it starts
        deadline_s = settings.CHAT["turn_deadline_s"]
        if self.request.origin is not None:
            deadline_s = min(deadline_s, _MOST_S_OF_FOLLOW_UP)
        deadline = asyncio.timeout(deadline_s)
        self._conclude_at = asyncio.get_running_loop().time() + deadline_s - _last_answer_s(deadline_s)
        try:
            with llm.counting_into(self.meter):
                async with deadline:
                    await self._answer()
        except llm.BudgetSpent as spent:  # even before the model's first answer
            raise LimitReached(spent.code) from None
        except TimeoutError:
            if not deadline.expired():
                raise
            raise LimitReached("deadline") from None

    async def _answer(self) -> None:
        request, claimed = self.request, self.claimed
        model = llm.chat_model()
        if request.kind == AssistantKind.HOME or domain_of(request):
            self.output.start(domain_of(request))
        zone = ZoneInfo(claimed.timezone)
        now = datetime.now(zone)
        memory = self._memory = MemoryContext(
            request,
            claimed,
            model,
            zone,
            steered=self._steers.read,
            said_yes=self._said_yes(),
            foreign=self.foreign,
        )
        if memory.enabled and claimed.recalled is None:
            self._recall = asyncio.get_running_loop().create_task(memory.recall(now), name="turn recall")
        await model.find_window()
        granted = await self._take_granted_calls(memory)
        wait_s = settings.CHAT["device_reconnect_wait_s"] if request.expects_device else 0.0
        async with DeviceLink(request.user_id, request.device_id, wait_s=wait_s) as link:
            session = DeviceSession(link, zone=zone, now=now, foreign=self.foreign)
            self.mutations = session.mutations
            self._session = session
            self._approvals = Approvals(
                request_id=request.request_id,
                session=session,
                memory=memory,
                user_words=partial(self._user_words, memory),
                count_recent_writes=self._count_recent_writes,
                looked_at=request.scope.id if request.scope else None,
                expires_at=int((time.time() + settings.CHAT["turn_deadline_s"]) * 1000),
                ask=self._ask if request.can_ask_approval else None,
                granted=granted,
            )
            context = self._context = TurnContext(
                model=model,
                max_model_calls=settings.CHAT["max_model_calls"]
                if request.origin is None
                else _MOST_CALLS_OF_FOLLOW_UP,
                conclude_at=self._conclude_at,
                authorize=self._approvals.allow,
                on_tool_start=self._show_tool,
                resolve=partial(resolve_call, session.aliases),
            )
            context.tool_config = {
                "session": session,
                "context": context,
                "turn_prompt": turn_prompt(now=now, locale=claimed.locale),
                MEMORY: memory,
                AGENTS: self._begin_agent_work(memory),
            }
            budget = context.budget
            session.max_result_chars = budget.part(4, session.max_result_chars)
            history_chars = budget.part(3, settings.CHAT["history_max_chars"])
            if history.needs_summary(claimed, history_chars):
                self.output.status(gettext("Summing up what was said before"))
            fitted = self._history = await history.fit_history(
                user_id=request.user_id, claimed=claimed, context=context, most_chars=history_chars
            )
            scope = await describe_scope(request.scope, session, most_chars=budget.part(4, MAX_SCOPE_CHARS))
            self.output.set_known_ids(session, fitted.summary)
            assistant = (
                supervisor(
                    request.kind,
                    SCOPE_TABLES.get(request.scope.type) if request.scope else None,
                    with_agents=self._all_user_words().may_be_about_agents,
                )
                if request.origin is None
                else FOLLOW_UP
            )
            messages = first_messages(
                assistant,
                request,
                claimed,
                session=session,
                history=fitted,
                scope=scope,
                memory=await (self._recall or memory.recall(now)),
                confirmed=[call.shown_with(partial(present_call, session.aliases)) for call in granted],
                budget=budget,
            )
            memory.start_receipt()
            messages += [HumanMessage(text) for text in await self._take_notes()]
            hooks = OutputHooks(
                self.output.write, self._end_model_answer, self._take_steers, self._take_notes
            )
            await answer_request(assistant, messages, context, hooks)

    def _begin_agent_work(self, memory: MemoryContext) -> AgentWork:
        assert self._approvals is not None
        self._agent_work = AgentWork(
            self.request,
            self.claimed,
            self._approvals,
            self._steers,
            user_words=partial(self._user_words, memory),
            show_status=self.output.status,
            conclude_at=self._conclude_at,
        )
        return self._agent_work

    def _all_user_words(self) -> UserWords:
        """Return the user's known words in this conversation."""
        said = [message.text for message in self.claimed.history if message.role == "user"]
        said += [message.content for message in self.request.history if message.role == "user"]
        return UserWords([*said, *self.request.words])

    def _user_words(self, memory: MemoryContext) -> UserWords:
        """Return the user's words in this turn; if it has read nothing foreign itself, those in the conversation."""
        said = [*self.request.words, *self._steers.given]
        history = [] if self.foreign else self.claimed.history
        said += [message.text for message in history if message.role == "user"]
        agreed = memory.said_yes and bool(history) and history[-1].role == "assistant"
        return UserWords([*said, history[-1].text] if agreed else said, agreed=agreed)

    def _said_yes(self) -> bool:
        """Return whether the request is a plain yes to the answer before it, which the user had seen to its end."""
        request = self.request
        if request.origin is not None or request.is_early or self.claimed.queued:
            return False
        return deferred_calls.is_yes(request.message)

    async def _count_recent_writes(self) -> int:
        request, claimed = self.request, self.claimed
        return await db.run(
            claimed_turn.count_recent_writes, user_id=request.user_id, conversation_id=claimed.conversation_id
        )

    async def _take_granted_calls(self, memory: MemoryContext) -> list[DeferredCall]:
        """Return the deferred calls that this message says yes to. Any message discards those deferred before it."""
        request = self.request
        if request.origin is not None or self.claimed.seq == 1:  # it begins its conversation
            return []
        answers = [message.text for message in self.claimed.history if message.role == "assistant"]
        deferred = await deferred_calls.take(
            user_id=request.user_id,
            where=self._chat_key,
            cipher=self.claimed.cipher,
            answer=answers[-1] if answers else None,
        )
        if request.can_ask_approval or not memory.said_yes:
            return []
        return [
            replace(call, arguments=await memory.with_label(call.arguments))
            if MEMORY in call.arguments
            else call
            for call in deferred
        ]

    @property
    def _chat_key(self) -> str:
        """Name the chat as well as the server knows it: the conversation, else the device and what it shows."""
        if self.claimed.conversation_id is not None:
            return str(self.claimed.conversation_id)
        request, scope = self.request, self.request.scope
        return f"{request.device_id} {request.kind} {scope.type if scope else ''} {scope.id if scope else ''}"

    async def _ask(self, question: ApprovalRequest) -> None:
        self.output.start(DOMAINS.get(question.table))
        self.stream.ask(question)
        await self._announce(question)

    def _show_tool(self, call: ToolInvocation) -> None:
        self.has_answered = False
        self.output.start(DOMAINS.get(call.table) or DOMAINS.get(str(call.arguments.get("agent"))))
        self.output.status(gettext(call.label))

    def _end_model_answer(self, text: str) -> bool:
        self._steers.mark_read(self._context.model_calls if self._context else 0)
        self.has_answered = self.output.end_answer()
        if self.has_answered:
            self._notes.mark_read()
        return self.has_answered

    async def _take_steers(self) -> list[str]:
        await self._steers.look(self.claimed)
        return self._steers.take()

    async def _take_notes(self) -> list[str]:
        """Return the notes on ended runs that the model is to tell. Titles that they quote count as nobody's words."""
        assert self._agent_work is not None
        self._agent_work.give_results()
        if not self._notes.is_due:
            return []
        note = await self._notes.take(self._agent_work.chat_place(), self.claimed.fence)
        if note is None:
            return []
        for run_id in note.run_ids:
            self.foreign.add(RUN_TABLE, str(run_id))
        self._send_notices(note.frames)
        return [note.text]

    def decide(self, approval_id: str, approved: bool) -> bool:
        """Answer an approval request. Returns False if this turn does not wait for it."""
        if self._approvals is None or not self._approvals.decide(approval_id, approved):
            return False
        self.stream.open.pop(approval_id, None)
        return True

    # ── What it says at its end ─────────────────────────────────────────────────────────────────────────

    async def conclude(self, finish: str, code: str) -> None:
        """Put remarks below the model's answer about omissions and wrong claims. Raises LimitReached."""
        self.output.end_answer()
        follows_up = self.request.origin is not None
        if said := said_in_answer(code, follows_up=follows_up):
            self.output.append_paragraph(said)
        if isinstance(self.meter, BudgetedMeter) and not follows_up:
            self._say_what_is_left(self.meter, code)
        self._say_what_was_refused()
        self._say_what_goes_on()
        self._say_how_it_was_answered()
        if finish == "stop":
            self._say_what_was_not_done()
            await self._ask_for_deferred_calls()

    def _say_what_is_left(self, meter: BudgetedMeter, code: str) -> None:
        """Say when a new month begins, if this one's money is used up; or, once a month, that little is left."""
        when = date_format(meter.renews_at, "MONTH_DAY_FORMAT") if meter.renews_at is not None else ""
        if code == "budget_spent":
            said = gettext("It is renewed on {date}; a larger plan goes on at once.")
            self.output.append_paragraph(said.format(date=when))
        elif meter.is_low:
            said = gettext("Of this month's allowance {percent} % are left. It is renewed on {date}.")
            self._notify("budget_low", said.format(percent=meter.percent_left or 0, date=when))

    def _say_what_was_refused(self) -> None:
        """Correct, below the answer, any claim by the model to have done what the user refused."""
        if self._approvals is not None and (refused := self._approvals.refused):
            self.output.append_paragraph(approvals.refusal_text(refused))

    def _say_what_goes_on(self) -> None:
        """Say which runs go on: a turn that is cancelled while it waits for a run does not stop it."""
        for name in self._agent_work.waiting_for.values() if self._agent_work is not None else ():
            said = gettext("The agent “{name}” goes on. You will be told here when it has ended.")
            self.output.append_paragraph(said.format(name=quotable(name)))

    def _say_how_it_was_answered(self) -> None:
        """Say which of the model's limits the user has met."""
        if (context := self._context) is None:
            return
        if notice := context.budget.notice():
            self._notify("left_out", notice)
        if context.lacks_tools:
            self._notify(
                "no_tools",
                gettext(
                    "This server's model cannot use tools: it can neither look at your data nor change it."
                ),
                once=True,
            )
        if context.stand_ins:
            names = ", ".join(name.rpartition("/")[2] for name in context.stand_ins)
            self._notify(
                "other_model",
                gettext("The usual model could not answer, so another one stood in: %(models)s.")
                % {"models": names},
                once=True,
            )

    def _notify(self, notice: Notice, text: str, *, once: bool = False) -> None:
        """Show a notice below the answer. `once`: not again in a conversation that has it."""
        self.notices.append(notice)
        if not (once and any(text in said.text for said in self.claimed.history)):
            self.output.append_paragraph(text)

    def _say_what_was_not_done(self) -> None:
        """Correct, below the answer, a claim of a change that the user asked for and that was not made."""
        context, approvals, memory = self._context, self._approvals, self._memory
        if context is None or approvals is None or memory is None or context.has_changed:
            return
        if approvals.deferred or approvals.refused or not claims_a_change(self.output.text):
            return
        if UserWords([*self.request.words, *self._steers.given], agreed=memory.said_yes).want_change:
            log.info("turn.change_claimed", user_id=str(self.request.user_id), turn=str(self.claimed.turn_id))
            self._notify("nothing_changed", gettext("Please note: nothing was created, changed or deleted."))

    async def _ask_for_deferred_calls(self) -> None:
        """Ask, below the answer, for the yes that the model's calls need. A yes counts for exactly the calls shown."""
        if self._approvals is None or not (deferred := self._approvals.deferred):
            return
        self.output.append_paragraph(deferred_calls.question_text(deferred, self._approvals.left_out))
        await deferred_calls.keep(
            user_id=self.request.user_id,
            where=self._chat_key,
            cipher=self.claimed.cipher,
            calls=deferred,
            answer=self.output.text,
        )

    # ── What happened ───────────────────────────────────────────────────────────────────────────────────

    @property
    def usage(self) -> Usage:
        """All use of models, even by calls that were cancelled or broke off."""
        used = usage.total(self.meter.uses())
        return Usage(
            input_tokens=used.input_tokens,
            output_tokens=used.output_tokens,
            model_calls=self._context.model_calls if self._context else 0,
            cached_tokens=used.cached_tokens or None,
            model=(self._context.usage.model if self._context else "") or used.model or None,
            cost_micro=used.cost_micro if used.calls > used.unpriced_calls else None,
            percent_left=self.meter.percent_left if isinstance(self.meter, BudgetedMeter) else None,
        )

    @property
    def renews_at(self) -> datetime | None:
        """The time when the user's next month of money for models begins, if there is a limit."""
        return self.meter.renews_at if isinstance(self.meter, BudgetedMeter) else None

    @property
    def tool_calls(self) -> int:
        return self._context.tool_calls if self._context else 0

    def steps(self) -> list[dict[str, Any]]:
        """Return the steps of the turn, for people (chat.turn_steps)."""
        return self._context.steps.listed() if self._context else []

    @property
    def heard_runs(self) -> frozenset[uuid.UUID]:
        """The agents' runs that the model was told the end of."""
        return frozenset(self._agent_work.heard_runs if self._agent_work is not None else ())

    @property
    def may_hold_runs(self) -> bool:
        """True if the turn has looked for watches of runs to tell, so that it may hold some."""
        return self._notes.has_looked or bool(self._agent_work and self._agent_work.asked_runs)

    def record(self) -> TurnRecord | None:
        session = self._session
        return TurnRecord(session.link.device, session.changes) if session is not None else None

    def new_summary(self) -> NewSummary | None:
        fitted = self._history
        if fitted is None or not fitted.new:
            return None
        return NewSummary(self.claimed.summary_upto + fitted.new, fitted.summary)

    def let_go(self) -> None:
        """Let go of what the answer was worked out with. It refers back to this object and to itself, so all of the
        turn would stay until a garbage collection.
        """
        if self._context is not None:
            self._context.tool_config = {}
        self._approvals = self._context = self._agent_work = None

    async def wait_for_receipts(self) -> None:
        if self._memory is None:
            return
        if self._recall is not None and not self._recall.done():
            self._recall.cancel()
            await asyncio.wait({self._recall})
        await self._memory.wait_for_receipts()

    @property
    def device_id(self) -> str | None:
        """The device whose data was read or changed; None if no call was sent to one."""
        return self._session.link.device_id if self._session is not None else None
