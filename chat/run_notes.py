"""Reports ends of agent runs in a turn that is already running because the user wrote something in that chat.

Before its next model call, the turn gets the end of a run that was started from its chat, as data with a sentence of
ours. The transaction that stores the answer marks the end as told if the model has answered since; else it is due
again, and a turn of its own tells it (chat.run_followups). Rows decide: a turn's process gets only the hint that it may
look.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from channels.layers import get_channel_layer
from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from redis.exceptions import RedisError

from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from adiuva.core.logging import log_failure
from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.devices.protocol import RunEnded
from agents import run_watches
from agents.models import Watch
from agents.run_watches import ChatPlace
from chat import run_ends
from chat.models import Turn

_MOST_TOLD: Final = 200
_NOTE: Final = (
    "[From the app, not from the user: a run that the user had started here has ended. What it brought is in the data "
    "below; nobody else tells them. Say it in at most three sentences, beside what they have asked for.]"
)


@dataclass(frozen=True)
class Note:
    """Ends of runs for the model. It reads `text`; its next answer tells `watches`, about the runs `run_ids`."""

    text: str
    watches: Sequence[uuid.UUID]
    run_ids: Sequence[uuid.UUID]
    frames: Sequence[RunEnded]


@transaction.atomic
def take(place: ChatPlace, fence: int) -> Note | None:
    """Return the due ends of a turn's chat for the turn to tell. None if there are none, or the turn no longer runs."""
    running = Turn.objects.running().filter(pk=place.turn_id, fence=fence)
    if running.select_for_update(no_key=True).only("pk").first() is None:
        return None
    held = run_watches.hold_due(place)
    if not held:
        return None
    ends = run_ends.read(held)
    cipher = cipher_for(place.user_id)
    text = "\n\n".join(run_ends.facts(cipher, end) for end in ends)
    return Note(
        f"{_NOTE}\n{delimit_untrusted('run', text)}",
        [watch.pk for watch in held],
        [watch.run_id for watch in held],
        [run_ends.frame(end.report, end.watch.conversation_id) for end in ends],
    )


class RunNotes:
    """The ends of runs that one turn tells. `is_due` says that there may be something to
    take; `has_looked`, that the turn has looked for it."""

    def __init__(self, *, is_due: bool = False) -> None:
        self.is_due, self.has_looked = is_due, False
        self.told: list[uuid.UUID] = []
        self._unread: list[uuid.UUID] = []  # notes that the model was given and has not answered yet

    async def take(self, place: ChatPlace, fence: int) -> Note | None:
        """Return the due ends of a turn's chat for the turn to tell; None without any, or if it no longer runs."""
        if not self.is_due:
            return None
        self.is_due, self.has_looked = False, True
        try:
            note = await db.run(take, place, fence)
        except Exception as error:  # the user's turn has its own answer to give
            log_failure("run_notes.not_taken", error, level="warning", turn=str(place.turn_id))
            return None
        if note is not None:
            self._unread += note.watches
        return note

    def mark_read(self) -> None:
        """Note that the model has answered the notes it was given."""
        self.told += self._unread
        self._unread.clear()


# ── The hint ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class TurnToTell:
    user_id: uuid.UUID
    request_id: str
    owner: str


def turns_to_tell() -> list[TurnToTell]:
    """Return the running turns that can tell a due end in their chats which nobody has tried to tell."""
    due = Watch.objects.filter(state=Watch.State.DUE, attempts=0, user=OuterRef("user_id"))
    here = Exists(due.filter(conversation=OuterRef("conversation_id")))
    without_conversation = Q(Exists(due.filter(conversation=None, turn=OuterRef("pk"))), conversation=None)
    running = Turn.objects.running().filter(here | without_conversation, waiting_request=None)
    found = running.exclude(owner="").values_list("user_id", "request_id", "owner")
    return [TurnToTell(*row) for row in found[:_MOST_TOLD]]


async def tell(turns: Sequence[TurnToTell]) -> None:
    """Hint to the turns' processes. If a hint gets lost, the end is due after the turn as well."""
    for turn in turns:
        message = {"type": "runs_ended", "user": str(turn.user_id), "request": turn.request_id}
        try:
            await get_channel_layer().send(turn.owner, message)
        except (OSError, RedisError) as error:
            log_failure("run_notes.not_told", error, level="warning", user_id=str(turn.user_id))
            return


# ── Repair ──────────────────────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def release_lost() -> int:
    """Make the watches due again that an ended or missing turn holds.

    That can happen if a turn ends while it takes them.
    """
    under_way = Turn.objects.filter(pk=OuterRef("turn"), ended_at=None)
    lost = Watch.objects.filter(~Exists(under_way), state=Watch.State.HELD)
    free = lost.order_by("pk").select_for_update(of=("self",), no_key=True, skip_locked=True)
    return Watch.objects.filter(pk__in=free.values("pk"), state=Watch.State.HELD).update(
        state=Watch.State.DUE
    )
