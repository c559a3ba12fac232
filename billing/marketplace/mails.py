"""Tells developers of plugins that change hands: the one who is offered a plugin, and its former owner.

Accounts are stolen to get at the plugins of honest people, so the owner is told while the transfer can be stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from zoneinfo import ZoneInfo

from django.conf import settings
from django.urls import reverse
from django.utils import timezone

from adiuva.accounts import mails
from adiuva.accounts.mails import Letter
from adiuva.accounts.models import Mail
from billing.marketplace.models import Developer
from billing.marketplace.user_models import PluginTransfer

Kind = Mail.Kind
State = PluginTransfer.State
# Each mail has a reason as long as the transfer is in this state.
_WHILE: Final = {
    Kind.PLUGIN_OFFERED: State.ASKED,
    Kind.PLUGIN_LEAVES: State.ACCEPTED,
    Kind.PLUGIN_GIVEN: State.DONE,
}


def register() -> None:
    mails.compose_with(_WHILE, _letter)


def order(kind: Mail.Kind, transfer: PluginTransfer, to: Developer) -> None:
    """Order a mail in the transaction that takes the transfer to its state. A deleted account gets none."""
    if to.user is not None:
        mails.order(kind, user=to.user, about=transfer.pk)


def _letter(mail: Mail) -> Iterator[Letter]:
    assert mail.about is not None
    rows = PluginTransfer.objects.filter(pk=mail.about, state=_WHILE[Kind(mail.kind)])
    found, user = rows.select_related("plugin", "giver", "receiver").first(), mail.user
    if found is None or user is None:
        return
    context: dict[str, Any] = {
        "plugin": found.plugin.name,
        "giver": found.giver.handle,
        "receiver": found.receiver.handle,
        "page": f"{settings.PUBLIC_URL}{reverse('account-plugins')}",
    }
    if found.due_at is not None:
        context["day"] = timezone.localtime(found.due_at, ZoneInfo(user.timezone)).date()
    yield Letter(user.email, mail.kind, context, user.locale, folder="marketplace")
