"""Watches on runs: the chats in which users are told of a run's end.

A run that is started from a chat gets a watch in the same transaction. The statement that ends a run makes its watches
due (RUN_ENDED_SQL); from then on the chat has to tell it. A turn that hears of the end itself holds the watch until its
answer is stored: then it is told, or due again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

from django.db import IntegrityError, connection, transaction
from django.db.models import Count, F, Q, QuerySet
from django.db.models.functions import Greatest, Now

from adiuva.accounts.keys import cipher_for
from adiuva.core import leases
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.errors import AdiuvaError, NotFound, Text
from agents.models import Run, Watch

State = Watch.State
# The most runs started within an hour from one conversation, and from all chats of a user.
MOST_AN_HOUR: Final = 10
MOST_AN_HOUR_OF_USER: Final = 30
# The most characters kept of the user's words.
_ASKED_CHARS: Final = 4_000
# The most ends that one turn tells.
MOST_AT_ONCE: Final = 8
# How many turns of a chat without a conversation may try to tell an end, and how long it waits for them.
MOST_TRIES_IN_TURNS: Final = 3
WAITS_FOR_DEVICE: Final = dt.timedelta(days=7)
_GIVEN_UP_AT_ONCE: Final = 1_000
# The bound on the pause that a provider asks for.
_LONGEST_PAUSE_S: Final = 6 * 3_600.0


class TooManyStarts(AdiuvaError):
    """Too many runs were started from a conversation, or from all of a user's, within the last hour."""

    code, status = "too_many_requests", 429

    def __init__(self, count: int, *, everywhere: bool) -> None:
        super().__init__(
            Text("{count} runs were started from chats within the last hour, which is the most", count=count)
        )
        self.count, self.everywhere = count, everywhere


@dataclass(frozen=True)
class ChatPlace:
    """The place in a user's chats from which a run is started or asked about.

    `conversation_id`: None for chats that have none, which `device_id` names. `asked`: the user's words. `depth`: 1 in
    a turn that follows up a run. `follow_up`: whether the end is to be told there.
    """

    user_id: UUID
    turn_id: UUID
    conversation_id: UUID | None = None
    device_id: str = ""
    asked: str = ""
    depth: int = 0
    follow_up: bool = True


class NoSuchConversation(NotFound):
    code = "conversation_not_found"

    def __init__(self) -> None:
        super().__init__("there is no such conversation, or it is not yours")


def place_in(user_id: UUID, conversation_id: UUID, *, follow_up: bool = True) -> ChatPlace:
    """Return a conversation of the user's as the place from which a run is started by hand, without words.

    Raises NoSuchConversation.
    """
    conversations = Watch.conversation.field.related_model._default_manager
    if not conversations.filter(pk=conversation_id, user_id=user_id).exists():
        raise NoSuchConversation
    return ChatPlace(user_id, uuid4(), conversation_id, follow_up=follow_up)


def conversation_of(run: Run) -> UUID | None:
    """Return the conversation that a run was started from."""
    rows = Watch.objects.of(run.user_id).filter(run=run, started=True).exclude(conversation=None)
    return rows.values_list("conversation_id", flat=True).first()


def check_starts(place: ChatPlace) -> None:
    """Raise TooManyStarts if no more runs may be started from there for now.

    Starts from one user's chats wait for each other until the end of the transaction, so that each is counted.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"starts of {place.user_id}"]
        )
    recent = Watch.objects.of(place.user_id).filter(
        started=True, created_at__gt=Now() - dt.timedelta(hours=1)
    )
    if (count := recent.of_chat(place.conversation_id, place.device_id).count()) >= MOST_AN_HOUR:
        raise TooManyStarts(count, everywhere=False)
    if (count := recent.count()) >= MOST_AN_HOUR_OF_USER:
        raise TooManyStarts(count, everywhere=True)


def add(run: Run, place: ChatPlace, *, started: bool) -> Watch:
    """Have a run's end told in a conversation. Call it in the transaction that starts the run, or with its row locked.

    A run that has a watch there already keeps it.
    """
    watch = Watch(
        run=run,
        user_id=place.user_id,
        conversation_id=place.conversation_id,
        device_id=place.device_id,
        turn=place.turn_id,
        started=started,
        depth=place.depth,
        state=State.WAITING if place.follow_up and not place.depth else State.TOLD,
    )
    Watch.asked.seal_into(cipher_for(place.user_id), watch, place.asked[:_ASKED_CHARS])
    try:
        with transaction.atomic():
            watch.save(force_insert=True)
    except IntegrityError:
        known = Watch.objects.filter(run=run).of_chat(place.conversation_id, place.device_id).first()
        if known is None:
            raise
        return known
    return watch


@transaction.atomic
def join(run_id: UUID, place: ChatPlace) -> None:
    """Have the end of a run that is already under way told there too, unless it has ended meanwhile."""
    run = Run.objects.live().of(place.user_id).select_for_update(no_key=True).filter(pk=run_id).first()
    if run is not None:
        add(run, place, started=False)


# Makes the watches of a run due when it ends; the run's row is locked. A common table expression for the statement that
# ends the run, with `run` and `run_ended_values`. Afterwards, send chat.follow_up for the watches in `watches_due`.
RUN_ENDED_SQL: Final = """
watches_ended AS (
    UPDATE agents_watch SET state = %(watch_state)s, due_at = statement_timestamp()
    WHERE run_id = %(run)s::uuid AND state = 'waiting' RETURNING state
),
watches_due AS (SELECT FROM watches_ended WHERE state = 'due')
"""


def run_ended_values(*, by_user: bool) -> dict[str, str]:
    """Return the parameters of RUN_ENDED_SQL. `by_user`: they cancelled the run themselves, and are told nothing."""
    return {"watch_state": str(State.TOLD if by_user else State.DUE)}


def hold(run_id: UUID, place: ChatPlace) -> bool:
    """Hold the watch of a run whose end the turn is going to tell. Returns False if another is telling it, or has."""
    free = Watch.objects.filter(run=run_id).of_chat(place.conversation_id, place.device_id)
    free = free.filter(Q(state=State.WAITING) | Q(leases.is_free(), state=State.DUE))
    return bool(free.update(state=State.HELD, turn=place.turn_id))


def hold_due(place: ChatPlace) -> list[Watch]:
    """Hold and return the due ends of a turn's chat for the turn to tell; it runs, and its row is locked.

    A conversation's turn takes only untried ends: if it fails over one, the next turn must not. Where there is no
    conversation, only such turns can tell them. Ends that others have locked just now are being told or taken back.
    """
    untried = 1 if place.conversation_id is not None else MOST_TRIES_IN_TURNS
    due = Watch.objects.of(place.user_id).of_chat(place.conversation_id, place.device_id)
    due = due.filter(state=State.DUE, attempts__lt=untried).select_related("run").order_by("due_at")
    found = list(due.select_for_update(of=("self",), no_key=True, skip_locked=True)[:MOST_AT_ONCE])
    Watch.objects.filter(pk__in=[watch.pk for watch in found]).update(
        state=State.HELD, turn=place.turn_id, attempts=F("attempts") + 1
    )
    return found


def settle(turn_id: UUID, *, told: bool) -> None:
    """Mark the watches that a turn holds as told, or as due again because nobody has read an answer after them."""
    held = Watch.objects.filter(turn=turn_id, state=State.HELD)
    if held.update(state=State.TOLD if told else State.DUE) and not told:
        enqueue_on_commit("chat.follow_up")


def settle_told(turn_id: UUID, *, told: Collection[UUID], runs: Collection[UUID]) -> None:
    """Mark these watches, and those of these runs, as told if the turn holds them, and its others as due again.

    The turn may hold watches without knowing it, if it was cancelled or lost its connection while it asked.
    """
    known = Watch.objects.filter(Q(pk__in=told) | Q(run__in=runs), turn=turn_id, state=State.HELD)
    known.update(state=State.TOLD)
    settle(turn_id, told=False)


def postpone(turn_id: UUID, seconds: float) -> None:
    """Make the watches that a turn holds due after this time at the earliest, which the model's provider has named."""
    until = Now() + dt.timedelta(seconds=min(seconds, _LONGEST_PAUSE_S))
    held = Watch.objects.filter(turn=turn_id, state=State.HELD)
    held.update(not_before=Greatest(F("not_before"), until))  # PostgreSQL ignores values that are NULL


def try_again(chosen: QuerySet[Watch]) -> int:
    """Let turns try again to tell ends that were given up. Returns how many."""
    given_up = chosen.filter(state__in=(State.DEAD, State.EXPIRED))
    count = given_up.update(state=State.DUE, attempts=0, due_at=Now(), not_before=None, turn=F("run_id"))
    if count:
        enqueue_on_commit("chat.follow_up")
    return count


def backlog() -> tuple[int, int]:
    """Return how many ends of runs are due, and how many no turn could tell."""
    left = Watch.objects.filter(state__in=(State.DUE, State.DEAD))
    counts = left.aggregate(
        due=Count("pk", filter=Q(state=State.DUE)), dead=Count("pk", filter=Q(state=State.DEAD))
    )
    return counts["due"], counts["dead"]


def expire() -> int:
    """Give up ends that a chat without a conversation did not hear in time, or could not be told. Returns how many."""
    due = Watch.objects.filter(conversation=None, state=State.DUE)
    tried = due.filter(attempts__gte=MOST_TRIES_IN_TURNS)
    late = due.filter(due_at__lt=Now() - WAITS_FOR_DEVICE)
    return _give_up(tried, State.DEAD) + _give_up(late, State.EXPIRED)


def _give_up(rows: QuerySet[Watch], state: State) -> int:
    ids = list(rows.values_list("pk", flat=True)[:_GIVEN_UP_AT_ONCE])
    return rows.filter(pk__in=ids).update(state=state) if ids else 0


def settle_late(
    turn_id: UUID, conversation_id: UUID | None, *, runs: Collection[UUID], told: Collection[UUID]
) -> None:
    """Mark these runs, or watches, as told by a turn that was thought lost.

    Its conversation is locked, so a turn that has begun to tell them meanwhile has not stored that yet, and then finds
    that there is nothing left to tell.
    """
    own = Watch.objects.filter(Q(run__in=runs) | Q(pk__in=told))
    mine = Q(turn=turn_id, state=State.DUE)
    if conversation_id is not None:
        mine = Q(conversation=conversation_id, state__in=(State.DUE, State.HELD))
    own.filter(mine).update(state=State.TOLD)


def holds(turn_id: UUID) -> bool:
    """Return whether a turn still has anything to tell."""
    return Watch.objects.filter(turn=turn_id, state=State.HELD).exists()


def drop(run_id: UUID) -> None:
    """Drop the watches of a run: its user has cancelled or undone it, and nobody is to be told."""
    leases.revoke(Watch.objects.filter(run=run_id, state__in=Watch.OPEN), state=State.TOLD)
