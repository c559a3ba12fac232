"""The turn as the agents' tools see it: its user, the user's words, and the time that they may wait for runs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from django.utils.translation import gettext
from langchain_core.runnables import RunnableConfig

from agents.run_waits import Progress, run_waits
from agents.run_watches import ChatPlace
from chat.approvals import Approvals
from chat.claimed_turn import ClaimedTurn
from chat.request import ChatRequest
from chat.steering import SteerQueue
from chat.user_intent import UserWords

# The name that stands in place of a device's table in agents' tools and in questions about agents.
AGENTS: Final[Literal["agents"]] = "agents"
# The status line changes at most this often.
_STATUS_EVERY_S: Final = 2.0
# A wait ends this long before the time at which the turn stops waiting for tools.
_SPARE_S: Final = 0.5
# A turn does not start the same agent again within this time unless the user has said something meanwhile, or the
# agent was only tried out.
_NOT_AGAIN_S: Final = 60.0

EndedBy = Literal["run", "time", "user"]


@dataclass(frozen=True)
class WaitEnd:
    """The end of a wait: the run has ended or waits for its user, `waited_s` have passed, or the user has said
    something.

    `progress`: the last that was seen of the run.
    """

    by: EndedBy
    waited_s: float
    progress: Progress | None = None


@dataclass(frozen=True)
class Started:
    """A run that the turn has started: the loop's time, and the number of messages that the user had added by then."""

    run_id: uuid.UUID
    at: float
    heard: int

    def is_recent(self, now: float, heard: int) -> bool:
        """Return whether it was started a moment ago, and the user has said nothing since."""
        return now - self.at < _NOT_AGAIN_S and heard == self.heard


@dataclass
class AgentWork:
    """The agents' part of a turn. `user_words` returns what the user has said; `show_status` shows them what is going
    on.

    `conclude_at`: the loop's time at which the turn stops waiting for tools. `waiting_for`: the runs that tools wait
    for right now, by id, with their agents' names. `started`: the runs that the turn has started, by agent and by
    whether they were dry. `asked_runs`: the runs whose end a tool has asked for, so that the turn may hold their
    watches; `answered_runs`: those whose end a tool was told; `heard_runs`: those whose end the model was told.
    """

    request: ChatRequest
    claimed: ClaimedTurn
    approvals: Approvals
    steers: SteerQueue
    user_words: Callable[[], UserWords]
    show_status: Callable[[str], None]
    conclude_at: float | None
    waiting_for: dict[uuid.UUID, str] = field(default_factory=dict)
    started: dict[tuple[uuid.UUID, bool], Started] = field(default_factory=dict)
    asked_runs: set[uuid.UUID] = field(default_factory=set)
    answered_runs: set[uuid.UUID] = field(default_factory=set)
    heard_runs: set[uuid.UUID] = field(default_factory=set)

    @property
    def user_id(self) -> uuid.UUID:
        return self.request.user_id

    @property
    def is_misled(self) -> bool:
        """True if a text that the user did not write may have led the model."""
        foreign = self.approvals.session.foreign
        return bool(foreign) or foreign.earlier

    @property
    def heard(self) -> int:
        """The number of messages that the user has added to the request so far."""
        return len(self.steers.given)

    def give_results(self) -> None:
        """Note that the model is given the answers of its tools."""
        self.heard_runs |= self.answered_runs

    @staticmethod
    def now() -> float:
        return asyncio.get_running_loop().time()

    def chat_place(self, *, follow_up: bool = True) -> ChatPlace:
        """Return the place in the chat from which a run is started now."""
        return ChatPlace(
            user_id=self.request.user_id,
            turn_id=self.claimed.turn_id,
            conversation_id=self.claimed.conversation_id,
            device_id=str(self.request.device_id or ""),
            asked="\n".join([*self.request.words, *self.steers.given]),
            depth=0 if self.request.origin is None else 1,
            follow_up=follow_up,
        )

    def longest_wait_s(self, wanted: int) -> float:
        """Return how long a wait may last if there is to be time for an answer."""
        if self.request.origin is not None:  # another turn like this one tells the next end
            return 0.0
        if self.conclude_at is None:
            return float(wanted)
        left = self.conclude_at - asyncio.get_running_loop().time() - _SPARE_S
        return max(0.0, min(float(wanted), left))

    async def wait(self, run_id: uuid.UUID, name: str, seconds: float) -> WaitEnd:
        """Wait until a run has ended or waits for its user, or the user says something. Raises TooManyWaits."""
        loop = asyncio.get_running_loop()
        began, shown_at, last = loop.time(), float("-inf"), None

        def show(progress: Progress) -> None:
            nonlocal shown_at, last
            last = progress
            if progress.files_seen and loop.time() - shown_at >= _STATUS_EVERY_S:
                shown_at = loop.time()
                self.show_status(
                    gettext("Reading your documents ({done} of {seen})").format(
                        done=progress.files_done, seen=progress.files_seen
                    )
                )

        self.waiting_for[run_id] = name
        run = loop.create_task(run_waits().wait(self.user_id, run_id, show), name="wait for run")
        spoken = loop.create_task(self.steers.spoken.wait(), name="wait for the user")
        try:
            await asyncio.wait({run, spoken}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            waited = loop.time() - began
            del self.waiting_for[run_id]  # kept if the turn is cancelled: its end says that the run goes on
            if run.done():
                return WaitEnd("run", waited, run.result())
            return WaitEnd("user" if spoken.done() else "time", waited, last)
        finally:
            run.cancel()
            spoken.cancel()


def agent_work_of(config: RunnableConfig) -> AgentWork:
    """Return the AgentWork of the turn that a tool runs in."""
    found = config["configurable"][AGENTS]
    assert isinstance(found, AgentWork)
    return found
