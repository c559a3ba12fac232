"""Tells the end of a run in the conversation that it was started from, exactly once (agents.run_watches).

If a turn runs there, it tells the end (chat.run_notes). Else one turn that no user's message began tells all ends that
are due in the conversation: its model gets the facts as data, and the transaction that stores its answer marks them as
told. If it fails, they are due again, later each time. If no turn can tell them, because all have failed, the model
refuses or there were too many turns, a notice of ours does: a message in the same conversation, without a model.
"""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Sequence
from typing import Final

import structlog
from django.db import transaction
from django.db.models import Exists, F, Min, OuterRef, Q, QuerySet
from django.db.models.functions import Now
from django.utils.translation import gettext

from adiuva.accounts.keys import NoSuchUser, cipher_for
from adiuva.accounts.models import User
from adiuva.core import db
from adiuva.core.crypto import UserCipher
from adiuva.core.language import speaking
from adiuva.core.logging import log_failure
from adiuva.devices.models import Device
from adiuva.devices.protocol import ConversationChanged, RunEnded
from agents import run_watches
from agents.models import Watch
from billing import allowances
from billing.models import Purpose
from chat import conversations, run_ends, turn_queue
from chat.claimed_turn import ClaimedTurn, append_message
from chat.models import AssistantKind, Message, Turn
from chat.prompts import system_prompt
from chat.request import ChatRequest
from chat.run_ends import RunEnd
from chat.turn_queue import QueueFull

REQUEST_PREFIX: Final = "followup:"
_MOST_CONVERSATIONS: Final = 100
_MOST_ATTEMPTS: Final = 8
_GIVE_UP: Final = dt.timedelta(hours=24)
_PAUSES_S: Final = (5, 30, 120, 600, 3_600, 14_400)
_MOST_AN_HOUR: Final = 6
_MOST_A_DAY: Final = 30
_MOST_A_DAY_OF_USER: Final = 60
# A second try would end as the first did.
_FINAL: Final = frozenset(
    {
        "content_filter",
        "model_rejected",
        "model_context_exceeded",
        "model_not_configured",
        "budget_spent",
        "work_budget_spent",
    }
)
_MESSAGE: Final = (
    "[From the app, not from the user: a run that the user had started here has ended. What it brought is in the data "
    "above. This is not a message of the user. Continue what they had asked with this result if something is left to "
    "do, without repeating what is done; else tell them the result in at most three sentences.{again}]"
)
_AGAIN: Final = " An earlier try broke off and may have changed rows: look first."

log = structlog.get_logger(__name__)


# Frames for a user's devices.
Frames = list[RunEnded | ConversationChanged]


def follow_up_due() -> list[tuple[uuid.UUID, Frames]]:
    """Have all due ends told. Returns the frames for their users' devices."""
    told = []
    for user_id, conversation_id in due_places()[:_MOST_CONVERSATIONS]:
        try:
            told.append((user_id, follow_up_in(user_id, conversation_id)))
        except NoSuchUser:
            continue
        except Exception as error:
            log_failure("followup.broke", error, logger=log, user_id=str(user_id))
    return told


def due_places() -> QuerySet[Watch, tuple[uuid.UUID, uuid.UUID]]:
    """Return the conversations, with their users, in which ends can be told now, the longest due first.

    Ends whose users have no device connected do not hold up the others; they come in once they are given up. A user who
    is locked out is told nothing until they are let in again.
    """
    here = Exists(Device.objects.online().filter(user=OuterRef("user_id")))
    given_up = Q(attempts__gte=_MOST_ATTEMPTS) | Q(due_at__lt=Now() - _GIVE_UP)
    ready = Watch.objects.filter(_is_ready(), here | given_up, state=Watch.State.DUE, user__is_active=True)
    by_place = ready.exclude(conversation=None).values("user_id", "conversation_id")
    longest_due = by_place.annotate(since=Min("due_at")).order_by("since")
    return longest_due.values_list("user_id", "conversation_id")


def _is_ready() -> Q:
    """Return the condition for ends that are due: also those after the last try, which only a notice can tell."""
    return Q(not_before=None) | Q(not_before__lte=Now()) | Q(attempts__gte=_MOST_ATTEMPTS)


@transaction.atomic
def follow_up_in(user_id: uuid.UUID, conversation_id: uuid.UUID) -> Frames:
    """Have the due ends of one conversation told. Returns the frames for the user's devices."""
    if not conversations.lock(user_id, conversation_id):
        return []
    # A running turn tells them itself.
    if Turn.objects.of(user_id).filter(conversation_id=conversation_id, ended_at=None).exists():
        return []
    rows = Watch.objects.filter(conversation_id=conversation_id, user_id=user_id, state=Watch.State.DUE)
    rows = rows.filter(_is_ready()).select_related("run").order_by("due_at")
    found = list(rows.select_for_update(of=("self",), no_key=True)[: run_watches.MOST_AT_ONCE])
    if not found:
        return []
    cipher = cipher_for(user_id)
    due = run_ends.read(found)
    too_late = db.clock() - _GIVE_UP
    refused = _refused(found)
    given_up = [
        each
        for each in due
        if each.watch.attempts >= _MOST_ATTEMPTS
        or each.watch.turn in refused
        or (each.watch.due_at is not None and each.watch.due_at < too_late)
    ]
    if given_up:  # the next look tells the others
        return _tell_in_notice(user_id, conversation_id, cipher, given_up, is_dead=True)
    if _has_enough(user_id, conversation_id) or not _has_money(user_id):
        return _tell_in_notice(user_id, conversation_id, cipher, due, is_dead=False)
    if not Device.objects.of(user_id).online().exists():
        return []  # tools would only fail; nothing is spent until a device is back
    return _begin_turn(user_id, conversation_id, cipher, due)


def _refused(tried: Sequence[Watch]) -> set[uuid.UUID]:
    """Return the turns that tried to tell some of these ends and failed in a way that another would repeat."""
    turns = Turn.objects.filter(pk__in=[watch.turn for watch in tried], request_id__startswith=REQUEST_PREFIX)
    return set(turns.filter(code__in=_FINAL).values_list("pk", flat=True))


def _has_enough(user_id: uuid.UUID, conversation_id: uuid.UUID) -> bool:
    """Return whether so many turns have followed up runs that only notices may."""
    day = Turn.objects.of(user_id).filter(
        request_id__startswith=REQUEST_PREFIX, started_at__gt=Now() - dt.timedelta(days=1)
    )
    here = day.filter(conversation_id=conversation_id)
    return (
        day.count() >= _MOST_A_DAY_OF_USER
        or here.count() >= _MOST_A_DAY
        or here.filter(started_at__gt=Now() - dt.timedelta(hours=1)).count() >= _MOST_AN_HOUR
    )


def _has_money(user_id: uuid.UUID) -> bool:
    """Return whether the month's share for such turns, and the month itself, have money for another."""
    return allowances.has_room(user_id, Purpose.FOLLOWUPS, None, None)


# ── A turn ──────────────────────────────────────────────────────────────────────────────────────────────


def _begin_turn(
    user_id: uuid.UUID, conversation_id: uuid.UUID, cipher: UserCipher, due: Sequence[RunEnd]
) -> Frames:
    turn_id, first = uuid.uuid4(), due[0].watch
    request = ChatRequest(
        user_id=user_id,
        request_id=f"{REQUEST_PREFIX}{turn_id}",
        kind=AssistantKind.HOME,
        message=_MESSAGE.format(again=_AGAIN if first.attempts else ""),
        device_id=uuid.UUID(first.device_id) if first.device_id else None,
        conversation_id=str(conversation_id),
        context="\n\n".join(run_ends.facts(cipher, end) for end in due),
        origin=run_ends.origin_of(due),
    )
    try:
        turn_queue.enqueue(
            request=request,
            turn_id=turn_id,
            conversation_id=conversation_id,
            owner="",
            prompt_version=system_prompt("home").version,
            cipher=cipher,
        )
    except QueueFull:
        return []
    for each in due:
        pause_s = _PAUSES_S[min(each.watch.attempts, len(_PAUSES_S) - 1)] * random.uniform(0.5, 1.0)
        Watch.objects.filter(pk=each.watch.pk).update(
            state=Watch.State.HELD,
            turn=turn_id,
            attempts=F("attempts") + 1,
            not_before=Now() + dt.timedelta(seconds=pause_s),
        )
    turn_queue.hand_over_idle(conversation_id)
    log.info("followup.queued", user_id=str(user_id), turn=str(turn_id), runs=len(due))
    return _run_ends(due)


def _run_ends(due: Sequence[RunEnd]) -> Frames:
    """Return a frame for each end that no turn has tried to tell yet."""
    return [run_ends.frame(end.report, end.watch.conversation_id) for end in due if not end.watch.attempts]


# ── A notice ────────────────────────────────────────────────────────────────────────────────────────────


def _tell_in_notice(
    user_id: uuid.UUID,
    conversation_id: uuid.UUID,
    cipher: UserCipher,
    due: Sequence[RunEnd],
    *,
    is_dead: bool,
) -> Frames:
    """Write the message and mark the ends as told, in one transaction. Not while a turn runs or waits there."""
    if Turn.objects.of(user_id).filter(conversation_id=conversation_id, ended_at=None).exists():
        return []
    user = User.objects.get(pk=user_id)
    claimed = ClaimedTurn(uuid.uuid4(), user.timezone, user.locale, cipher, conversation_id)
    with speaking(user.locale):
        sentences = [run_ends.notice(end.report) for end in run_ends.read(end.watch for end in due)]
        if is_dead:
            sentences.append(gettext("I could not go on with it by myself."))
    request = ChatRequest(user_id, "", AssistantKind.HOME, "")
    body = {"text": " ".join(sentences), "finish": "stop", "origin": run_ends.origin_of(due).body()}
    added = append_message(claimed, request, Message.Role.ASSISTANT, body, foreign=True)
    state = Watch.State.DEAD if is_dead else Watch.State.DONE
    Watch.objects.filter(pk__in=[each.watch.pk for each in due]).update(state=state)
    log.info("followup.told_in_notice", user_id=str(user_id), runs=len(due), dead=is_dead)
    changed = [ConversationChanged(conversation_id=str(conversation_id), seq=added.seq)] if added else []
    return [*_run_ends(due), *changed]
