"""Giving a plugin to another developer: offered by its owner, accepted by the other, and done after a hold.

The hold exists because accounts are stolen: the owner is told, and can stop the transfer until it ends. Earlier sales
stay the former owner's. The next version is reviewed like any other, by staff who see that the owner changed.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final
from uuid import UUID

import structlog
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.core import db
from adiuva.core.errors import Conflict, Invalid, NotFound
from billing.marketplace import developers, mails
from billing.marketplace.models import Developer, Plugin
from billing.marketplace.user_models import PluginTransfer

HOLD: Final = dt.timedelta(days=7)
# An offer that gets no answer ends after this time.
_ASKED_FOR: Final = dt.timedelta(days=30)
State = PluginTransfer.State
_OPEN: Final = (State.ASKED, State.ACCEPTED)

log = structlog.get_logger(__name__)


class NoSuchTransfer(NotFound):
    def __init__(self) -> None:
        super().__init__("there is no such transfer, or it is over")


@transaction.atomic
def ask(*, user_id: UUID, plugin_id: UUID, handle: str) -> PluginTransfer:
    """Offer a plugin of one's own to another developer. Raises NotFound, NoDeveloper, Suspended, Invalid, Conflict."""
    giver = developers.active(user_id)
    plugin = Plugin.objects.select_for_update(no_key=True).filter(pk=plugin_id, developer=giver).first()
    if plugin is None:
        raise NotFound("there is no such plugin of yours")
    receiver = Developer.objects.filter(handle=handle, state=Developer.State.ACTIVE).first()
    if receiver is None or receiver == giver:
        raise Invalid(
            "nobody can be given it", fields={"handle": ["There is no other developer with this handle."]}
        )
    try:
        with transaction.atomic():
            made = PluginTransfer.objects.create(plugin=plugin, giver=giver, receiver=receiver)
    except IntegrityError:
        raise Conflict("this plugin is on its way to another owner already") from None
    mails.order(mails.Kind.PLUGIN_OFFERED, made, receiver)
    return made


@transaction.atomic
def accept(*, user_id: UUID, transfer_id: UUID) -> PluginTransfer:
    """Accept an offered plugin; the hold begins. Raises NoSuchTransfer, NoDeveloper, Suspended."""
    receiver = developers.active(user_id)
    row = _open(Q(pk=transfer_id, receiver=receiver, state=State.ASKED))
    row.state, row.due_at = State.ACCEPTED, timezone.now() + HOLD
    row.save(update_fields=["state", "due_at"])
    mails.order(mails.Kind.PLUGIN_LEAVES, row, row.giver)
    return row


@transaction.atomic
def cancel(*, user_id: UUID, transfer_id: UUID) -> PluginTransfer:
    """Stop a transfer: either side may, until it is done. Raises NoSuchTransfer."""
    mine = Q(giver__user_id=user_id) | Q(receiver__user_id=user_id)
    row = _open(Q(pk=transfer_id) & mine)
    row.state = State.CANCELLED
    row.save(update_fields=["state"])
    return row


def _open(which: Q) -> PluginTransfer:
    rows = PluginTransfer.objects.select_for_update(of=("self",), no_key=True).filter(which, state__in=_OPEN)
    found = rows.first()
    if found is None:
        raise NoSuchTransfer
    return found


def of_user(user_id: UUID) -> list[dict[str, Any]]:
    """Return the open transfers from and to a user."""
    mine = Q(giver__user_id=user_id) | Q(receiver__user_id=user_id)
    rows = PluginTransfer.objects.filter(mine, state__in=_OPEN).select_related("plugin", "giver", "receiver")
    return [describe(row) for row in rows]


def describe(row: PluginTransfer) -> dict[str, Any]:
    return {
        "id": row.pk,
        "plugin": row.plugin.slug,
        "giver": row.giver.handle,
        "receiver": row.receiver.handle,
        "state": row.state,
        "due_at": row.due_at,
    }


def sweep() -> int:
    """Carry out transfers whose hold is over, and cancel unanswered offers. Returns how many plugins changed hands."""
    old = PluginTransfer.objects.filter(state=State.ASKED, asked_at__lt=Now() - _ASKED_FOR)
    for pk in old.values_list("pk", flat=True):  # each by itself: an account's deletion cancels several, too
        old.filter(pk=pk).update(state=State.CANCELLED)
    due = PluginTransfer.objects.filter(state=State.ACCEPTED, due_at__lte=Now()).values_list("pk", flat=True)
    done = 0
    for pk in due:
        with db.conflicts_put_off("plugin.not_given", transfer_id=str(pk)):
            done += _carry_out(pk)
    return done


@transaction.atomic
def _carry_out(transfer_id: UUID) -> bool:
    """Carry out a transfer. Locks the plugin before the transfer, as `ask` does. Returns whether it was done."""
    plugin_id = PluginTransfer.objects.values_list("plugin_id", flat=True).get(pk=transfer_id)
    plugin = Plugin.objects.select_for_update(no_key=True).get(pk=plugin_id)
    rows = PluginTransfer.objects.select_for_update(of=("self",), no_key=True).select_related(
        "giver", "receiver"
    )
    row = rows.filter(pk=transfer_id, state=State.ACCEPTED, due_at__lte=Now()).first()
    if row is None:
        return False
    is_right = plugin.developer_id == row.giver_id and all(
        each.state == Developer.State.ACTIVE for each in (row.giver, row.receiver)
    )
    row.state = State.DONE if is_right else State.CANCELLED
    row.save(update_fields=["state"])
    if is_right:
        plugin.developer = row.receiver
        plugin.save(update_fields=["developer"])
        mails.order(mails.Kind.PLUGIN_GIVEN, row, row.giver)
        log.info("plugin.changed_owner", plugin_id=str(plugin.pk), transfer_id=str(row.pk))
    return is_right
