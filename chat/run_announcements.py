"""Tells users of their agents' scheduled runs: a message of ours in a conversation of its own, without a model.

The agents choose which ends are told (agents.announcements). Ends that come close together share one message.
"""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Final

import structlog
from django.db import transaction
from django.db.models.functions import Now
from django.utils.translation import gettext

from adiuva.accounts.keys import NoSuchUser, cipher_for
from adiuva.accounts.models import User
from adiuva.core.crypto import UserCipher
from adiuva.core.language import speaking
from adiuva.core.logging import log_failure
from adiuva.devices.protocol import ConversationChanged, RunEnded
from agents import run_reports
from agents.models import Run
from chat import conversations, run_ends
from chat.claimed_turn import ClaimedTurn, append_message
from chat.models import AssistantKind, Conversation, Message, Turn
from chat.request import ChatRequest, RunEnds

_MOST_USERS: Final = 100
_MOST_AT_ONCE: Final = 20
_PAUSE: Final = dt.timedelta(minutes=1)

log = structlog.get_logger(__name__)

Frames = list[RunEnded | ConversationChanged]


def announce_due() -> list[tuple[uuid.UUID, Frames]]:
    """Tell all ends that are due. Returns the frames for their users' devices."""
    due = Run.objects.filter(announcement=Run.Announcement.DUE).order_by()
    told = []
    for user_id in due.values_list("user_id", flat=True).distinct()[:_MOST_USERS]:
        try:
            told.append((user_id, _announce(user_id)))
        except NoSuchUser:
            continue
        except Exception as error:
            log_failure("announcement.broke", error, logger=log, user_id=str(user_id))
    return told


@transaction.atomic
def _announce(user_id: uuid.UUID) -> Frames:
    cipher = cipher_for(user_id)
    user = User.objects.get(pk=user_id)
    with speaking(user.locale):
        place = _conversation(user_id, cipher)
        if not conversations.lock(user_id, place) or _has_to_wait(place):
            return []
        due = Run.objects.of(user_id).filter(announcement=Run.Announcement.DUE).order_by("completed_at")
        found = list(due.select_for_update(no_key=True, skip_locked=True)[:_MOST_AT_ONCE])
        reports = [run_reports.report_of(run) for run in found]
        if not reports:
            return []
        text = "\n".join(run_ends.notice(report) for report in reports)
    told = RunEnds(tuple(str(run.pk) for run in found), tuple(report.agent_name for report in reports))
    claimed = ClaimedTurn(uuid.uuid4(), user.timezone, user.locale, cipher, place)
    request = ChatRequest(user_id, "", AssistantKind.HOME, "")
    body = {"text": text, "finish": "stop", "origin": told.body()}
    added = append_message(claimed, request, Message.Role.ASSISTANT, body, foreign=True)
    assert added is not None  # it is locked
    Run.objects.filter(pk__in=[run.pk for run in found]).update(announcement=Run.Announcement.TOLD)
    log.info("announcement.told", user_id=str(user_id), runs=len(found))
    ends = [run_ends.frame(report, place) for report in reports]
    return [*ends, ConversationChanged(conversation_id=str(place), seq=added.seq)]


def _conversation(user_id: uuid.UUID, cipher: UserCipher) -> uuid.UUID:
    """Return the user's conversation for agents, made if need be: they may have deleted the last one."""
    mine = Conversation.objects.of(user_id).filter(for_agents=True).values_list("pk", flat=True)
    if (found := mine.first()) is not None:
        return found
    made = Conversation(user_id=user_id, for_agents=True)
    made.title = Conversation.title.seal(cipher, gettext("Agents"), made.pk)
    Conversation.objects.bulk_create([made], ignore_conflicts=True)  # another may just have made it
    return mine.get()


def _has_to_wait(place: uuid.UUID) -> bool:
    """Return whether the last message is new, or a turn is under way, whose question and answer must stay together."""
    if Turn.objects.filter(conversation_id=place, ended_at=None).exists():
        return True
    recent = Message.objects.filter(conversation_id=place, created_at__gt=Now() - _PAUSE)
    return recent.exists()
