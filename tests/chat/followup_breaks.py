"""The way of a run's end into its conversation, broken off again and again at any of its statements.

What breaks off is a process that dies or a connection that is lost: before a statement, after it, or after a commit
whose success nobody learns of. Then it goes on as in the product: by the same process, which tries to store the turn's
end again, or by another, after the turn was found lost. A few rounds are a test, many are `bench.followup_breaks`.
"""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from django.db import connection

from adiuva.devices.models import Device
from agents import run_watches, runs
from agents.models import Run, Watch
from agents.run_watches import ChatPlace
from chat import conversations, lost_turns, run_followups, run_notes, turn_ends
from chat.claimed_turn import ClaimedTurn, TurnOutcome
from chat.models import Conversation, Turn
from chat.request import ChatRequest
from chat.turn_claims import begin_turn
from tests.agents.factories import create_agent, create_run
from tests.chat.factories import make_conversation
from tests.factories import Person, a_process

SETTLED: Final = (Watch.State.DONE, Watch.State.TOLD, Watch.State.DEAD)
_STATEMENTS: Final = 16  # that one step takes at most, about
_OF_TRANSACTIONS: Final = ("SAVEPOINT", "RELEASE", "ROLLBACK")
_MOST_STEPS: Final = 200


class Broken(Exception):
    """Here the process died, or its connection to the database was lost."""


@contextmanager
def broken_at(number: int, *, before: bool) -> Iterator[None]:
    """Break off at the statement of this number, from 1, if there are so many."""
    count = 0

    def execute(run: Callable[..., Any], *given: Any) -> Any:
        nonlocal count
        if given[0].split()[0] in _OF_TRANSACTIONS:
            return run(*given)
        count += 1
        if before and count == number:
            raise Broken
        done = run(*given)
        if count == number:
            raise Broken
        return done

    with connection.execute_wrapper(execute):
        yield


class Way:
    """Where a run's end is to be told. `breaks`: how often it broke off."""

    def __init__(self, person: Person, chance: random.Random) -> None:
        self.person, self.chance, self.breaks = person, chance, 0
        self.place: Conversation = make_conversation(person.id)
        if not Device.objects.of(person.id).online().exists():
            Device.objects.create(
                user_id=person.id, device_id="desk", process=a_process(dt.timedelta(days=9))
            )
        run = create_run(create_agent(person.id, name=uuid.uuid4().hex[:8]))
        place = ChatPlace(person.id, uuid.uuid4(), self.place.pk, asked="run it and tell me")
        self.watch = run_watches.add(run, place, started=True)
        runs.end(run, Run.State.SUCCESS, "completed")

    def go(self) -> None:
        """Have it told, however often that breaks off."""
        for _ in range(_MOST_STEPS):
            self.watch.refresh_from_db()
            if self.watch.state in SETTLED:
                return
            # As if nothing had been tried: eight tries, or six an hour, would end it with a notice soon.
            mine = Watch.objects.filter(pk=self.watch.pk, state=Watch.State.DUE)
            if mine.update(not_before=None, attempts=0):
                tried = Turn.objects.of(self.person.id).filter(
                    request_id__startswith=run_followups.REQUEST_PREFIX
                )
                tried.exclude(ended_at=None).delete()
            run_notes.release_lost()
            self._step()
        raise AssertionError(f"not told after {_MOST_STEPS} steps: {self.watch.state}")

    def tellings(self) -> int:
        """How many messages tell it."""
        told = [one.get("origin") for one in conversations.read_messages(self.place)]
        return sum(str(self.watch.run_id) in origin["run_ids"] for origin in told if origin)

    def _step(self) -> None:
        turn = Turn.objects.of(self.person.id).filter(conversation=self.place, ended_at=None).first()
        if turn is None:
            self._perhaps_broken(run_followups.follow_up_in, self.person.id, self.place.pk)
            return
        begun = self._perhaps_broken(
            begin_turn, turn_id=turn.pk, user_id=self.person.id, owner="a process that dies"
        )
        if begun is not None and self._finish(begun.request, begun.claimed):
            return
        turn.refresh_from_db()
        if turn.state == Turn.State.RUNNING and turn.owner == "a process that dies":
            lost_turns.mark_lost(turn=turn, code="turn_lost")

    def _finish(self, request: ChatRequest, claimed: ClaimedTurn) -> bool:
        """Whether its process knows in the end that it is stored."""
        result = TurnOutcome(state="stop", text=f"It has ended. {uuid.uuid4()}", has_answered=True)
        is_again = False
        while self.chance.random() < 0.8:
            if self._perhaps_broken(self._store, request, claimed, result, is_again) is not None:
                return True
            is_again = True
        return False

    @staticmethod
    def _store(request: ChatRequest, claimed: ClaimedTurn, result: TurnOutcome, is_again: bool) -> bool:
        turn_ends.finish_turn(request=request, claimed=claimed, result=result, is_again=is_again)
        return True

    def _perhaps_broken(self, step: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """What a step returns; None if it broke off, or if nobody learnt that it had not."""
        number = self.chance.randint(1, _STATEMENTS * 3 // 2)
        try:
            with broken_at(number, before=self.chance.random() < 0.5):
                done = step(*given, **named)
        except Broken:
            self.breaks += 1
            return None
        if self.chance.random() < 0.2:  # committed, and not known
            self.breaks += 1
            return None
        return done
