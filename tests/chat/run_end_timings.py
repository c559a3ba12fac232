"""The end of a run at a random moment of a turn that runs in its conversation, in one process with a real database.

The turn may wait for the run, call tools, fail, be cut off, cancelled, joined or followed by another message, or be
taken for lost by others while it goes on. Between any two steps of the database there is a random delay. A few such
timings are a test, many are `bench.run_end_timings`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import re
import statistics
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from adiuva.core import db
from adiuva.devices.models import Device
from adiuva.llm.message_normalization import AFTER_RESULTS
from agents import run_reports, run_watches, runs
from agents.models import Run, Watch
from agents.run_watches import ChatPlace
from chat import conversations, lost_turns, run_followups, run_notes, turn_control, turn_queue
from chat.models import AssistantKind, Turn
from chat.request import ChatRequest
from chat.stream_replay import NotRunning
from chat.turn_registry import registry
from tests.agents.factories import create_agent, create_run
from tests.chat.factories import make_conversation
from tests.factories import Person, a_process
from tests.fakes.provider import Call, Fail, Request, Say

# What becomes of the turn. The user's message names it to the model.
KINDS: Final = ("plain", "tool", "wait", "pair", "fail", "filter", "cancel", "lose", "follow", "steer")
# Those that wait for the run; in a pair another one ends meanwhile that was started before.
_WAITING: Final = ("wait", "pair")
SETTLED: Final = (Watch.State.DONE, Watch.State.TOLD, Watch.State.DEAD)
_PATIENCE_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.1
_SLOWEST_ANSWER_S: Final = 0.08
_LONGEST_DELAY_S: Final = 0.012
_FIRST_TURN_S: Final = 0.3  # as long as none is known
_REFUSED: Final = 0.05  # share of the turns of their own
_ASKED: Final = re.compile(r"\[(\w+)\] about (agent \w+)")
_TOLD: Final = re.compile(r"“(agent \w+)” has ended")


_turns_s: deque[float] = deque([_FIRST_TURN_S], maxlen=20)


def newest_of(messages: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """What a model is told for the first time: all behind its last answer."""
    answers = (
        place
        for place, one in enumerate(messages)
        if one["role"] == "assistant" and one["content"] != AFTER_RESULTS
    )
    return messages[max(answers, default=-1) + 1 :]


class Model:
    """Says HEARD with the name of each agent whose end it is told, and otherwise does what the message names."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    async def __call__(self, request: Request) -> Any:
        await asyncio.sleep(self.chance.random() * _SLOWEST_ANSWER_S)
        messages = request.body["messages"]
        newest = "\n".join(str(message["content"]) for message in newest_of(messages))
        ended = sorted(set(_TOLD.findall(newest)))
        if "This is not a message of the user" in newest and self.chance.random() < _REFUSED:
            return Fail(400)
        said = [str(message["content"]) for message in messages if message["role"] == "user"]
        kind, name = ([found for text in said for found in _ASKED.findall(text)] or [("plain", "")])[-1]
        is_first = messages[-1]["role"] == "user" and not ended and "From the app" not in newest
        if is_first and kind in _WAITING:
            return Call("view_agent_output", {"agent": name, "wait_if_running": 5})
        if is_first and kind in ("tool", "fail", "filter", "steer"):
            return Call("list_agents")
        if kind == "fail" and self.chance.random() < 0.5 and "This is not a message" not in newest:
            return Fail(400)
        if kind == "filter" and "This is not a message" not in newest:
            return Say("I cannot say that.", finish="content_filter")
        return " ".join(f"HEARD {one}." for one in ended) or "Very well."


@contextmanager
def slow_database(chance: random.Random) -> Iterator[None]:
    """Let a random time pass before and after whatever this process asks of the database."""
    run = db.run

    async def run_slowly(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        await asyncio.sleep(chance.random() * _LONGEST_DELAY_S)
        try:
            return await run(function, *given, **named)
        finally:
            await asyncio.sleep(chance.random() * _LONGEST_DELAY_S)

    db.run = run_slowly
    try:
        yield
    finally:
        db.run = run


class Timing:
    """A conversation with a run that was started from it. `kind`: what its turn does."""

    def __init__(self, person: Person, kind: str, chance: random.Random) -> None:
        self.person, self.kind, self.chance = person, kind, chance
        self.name = f"agent {uuid.uuid4().hex[:8]}"
        self.place = make_conversation(person.id)
        if not Device.objects.of(person.id).online().exists():
            Device.objects.create(
                user_id=person.id, device_id="desk", process=a_process(dt.timedelta(days=9))
            )
        names = [self.name, *([f"agent {uuid.uuid4().hex[:8]}"] if kind == "pair" else [])]
        self.watches = [self._start(name) for name in names]
        self.turns: list[Any] = []
        self.is_open = False  # after all that time

    def _start(self, name: str) -> Watch:
        run = create_run(create_agent(self.person.id, name=name))
        asked = ChatPlace(self.person.id, uuid.uuid4(), self.place.pk, asked=f"run {name}")
        return run_watches.add(run, asked, started=True)

    async def go(self) -> None:
        """Have the turn answered while the run ends, and wait until that is settled, or for a minute."""
        looking = asyncio.create_task(self._keep_looking())
        try:
            async with asyncio.timeout(_PATIENCE_S) as patience:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._say(self.kind))
                    for watch in self.watches:
                        group.create_task(self._end_run(watch.run))
                    if self.kind in ("cancel", "lose", "follow", "steer"):
                        group.create_task(self._interfere())
                while await db.run(self._is_open):
                    await asyncio.sleep(_LOOK_EVERY_S)
                for turn in self.turns:
                    await turn.ended.wait()
                await self.look()
        except TimeoutError:
            if not patience.expired():
                raise
            self.is_open = True
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def tellings(self) -> list[list[str]]:
        """By what each of the runs was told: the "turn" that ran, a turn of its "own", or a "notice".

        A user who asks for a run after it was told gets an answer all the same: that is no second telling
        (`was_asked_again`).
        """
        return [
            [way for way, asked_again in self._tellings(watch.run) if not asked_again]
            for watch in self.watches
        ]

    @property
    def is_right(self) -> bool:
        return all(len(told) == 1 for told in self.tellings())

    @property
    def was_asked_again(self) -> bool:
        return any(asked_again for watch in self.watches for _, asked_again in self._tellings(watch.run))

    def _tellings(self, run: Run) -> list[tuple[str, bool]]:
        """Each way in which it was told, and whether a user who had been told has asked for it in a later message."""
        name = run_reports.report_of(run).agent_name
        found: list[tuple[str, bool]] = []
        asked_after = False
        for message in conversations.read_messages(self.place):
            if message["role"] == "user":
                asked_after = bool(found) and any(
                    f"[{kind}] about {name}" in message["text"] for kind in _WAITING
                )
            elif str(run.pk) in message.get("origin", {}).get("run_ids", ()):
                found.append(("own" if "HEARD" in message["text"] else "notice", False))
            elif f"HEARD {name}." in message["text"]:
                found.append(("turn", asked_after))
        return found

    def transcript(self) -> list[str]:
        """What was said in the conversation, in its order, and what became of the watches and the turns."""
        turns = Turn.objects.of(self.person.id).filter(conversation=self.place).order_by("started_at")
        mine = Watch.objects.filter(pk__in=[watch.pk for watch in self.watches]).select_related("run")
        return [
            *(
                f"{self.kind}: {run_reports.report_of(one.run).agent_name} ended {one.run.completed_at}, {one.state} "
                f"after {one.attempts} tries"
                for one in mine
            ),
            *(
                f"  turn {row.request_id}: {row.started_at} to {row.ended_at}, {row.state} {row.code}"
                for row in turns
            ),
            *(
                f"  {one['seq']} {one['role']}{' of its own' if one.get('origin') else ''}: {one['text']}"
                for one in conversations.read_messages(self.place)
            ),
        ]

    # ── What happens at random moments ──────────────────────────────────────────────────────────────────

    async def _say(self, kind: str, **fields: Any) -> None:
        message, began = f"Hello! [{kind}] about {self.name}", time.monotonic()
        turn = await registry().start(
            ChatRequest(
                user_id=self.person.id,
                request_id=uuid.uuid4().hex,
                kind=AssistantKind.HOME,
                message=message,
                conversation_id=str(self.place.pk),
                memory=False,
                **fields,
            )
        )
        self.turns.append(turn)
        await turn.ended.wait()
        _turns_s.append(time.monotonic() - began)

    async def _end_run(self, run: Run) -> None:
        await self._some_time()
        await db.run(runs.end, run, Run.State.SUCCESS, "completed")
        if self.chance.random() < 0.7:  # else the hint is lost
            await self.look()

    async def _interfere(self) -> None:
        await self._some_time()
        match self.kind:
            case "cancel":
                await self._if_it_runs(
                    lambda turn: turn_control.cancel(registry(), self.person.id, turn.request.request_id)
                )
            case "lose":
                await self._if_it_runs(self._lose)
            case "follow":
                await self._say("plain")
            case "steer":
                await self._say("plain", busy="steer")

    async def _if_it_runs(self, act: Callable[[Any], Awaitable[None]]) -> None:
        if self.turns:
            try:
                await act(self.turns[0])
            except NotRunning:
                pass

    async def _lose(self, turn: Any) -> None:
        row = await db.run(Turn.objects.get, pk=turn.claimed.turn_id)
        if row.state == Turn.State.RUNNING:
            await db.run(lost_turns.mark_lost, turn=row, code="turn_lost")

    async def _some_time(self) -> None:
        """Up to a little longer than a turn takes here and now."""
        await asyncio.sleep(self.chance.random() * 1.2 * statistics.median(_turns_s))

    # ── What workers and other processes do all the time ────────────────────────────────────────────────

    async def _keep_looking(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def look(self) -> None:
        """Tell what is due in this conversation, and mend what was lost on the way."""
        await run_notes.tell(await db.run(self._turns_to_tell))
        await db.run(run_followups.follow_up_in, self.person.id, self.place.pk)
        await db.run(run_notes.release_lost)
        await db.run(self._do_not_wait)
        for handed_over in await db.run(self._abandoned):
            await registry().waiting.begin(handed_over)

    def _turns_to_tell(self) -> Sequence[run_notes.TurnToTell]:
        return [turn for turn in run_notes.turns_to_tell() if turn.user_id == self.person.id]

    def _abandoned(self) -> Sequence[turn_queue.HandedOver]:
        return [one for one in turn_queue.find_abandoned(100) if one.user_id == self.person.id]

    def _do_not_wait(self) -> None:
        """The next try comes seconds later; here at once."""
        Watch.objects.filter(conversation=self.place, state=Watch.State.DUE).update(not_before=None)

    def _is_open(self) -> bool:
        untold = Watch.objects.filter(conversation=self.place).exclude(state__in=SETTLED)
        open_ = Turn.objects.of(self.person.id).filter(conversation=self.place, ended_at=None)
        return untold.exists() or open_.exists()


async def try_timings(timings: Sequence[Timing], chance: random.Random, *, at_once: int) -> None:
    """Go through them, so many at the same time."""
    left = list(timings)[::-1]

    async def go() -> None:
        while left:
            await left.pop().go()

    with slow_database(chance):
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(left))):
                group.create_task(go())


def count(timings: Sequence[Timing]) -> Counter[str]:
    """How often runs' ends were told: by what they were, or "twice" or "never"; how many are still to be told; and how
    many were asked for again."""
    ways = Counter[str]()
    for timing in timings:
        ways["open"] += timing.is_open
        ways["again"] += timing.was_asked_again
        for told in timing.tellings():
            ways[told[0] if len(told) == 1 else "twice" if told else "never"] += 1
    return ways
