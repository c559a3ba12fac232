"""Publishers of plugins: their handles, their accounts at Stripe if they sell, and the deletion of their accounts."""

from __future__ import annotations

import re
import uuid
from typing import Any, Final, Literal
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import Q

from adiuva.core.errors import AdiuvaError, Conflict, Invalid, NotFound
from billing.marketplace.models import Developer, Plugin
from billing.marketplace.money_models import PluginPurchase
from billing.marketplace.names import is_plain_name, is_reserved, too_close
from billing.marketplace.user_models import PluginTransfer

AccountState = Literal["none", "pending", "ready", "restricted"]
_HANDLE: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_HANDLE_CHARS: Final = (3, 39)


class NoDeveloper(NotFound):
    code = "no_developer"

    def __init__(self) -> None:
        super().__init__("you have no developer's handle yet")


class NameTaken(Conflict):
    code = "name_taken"

    def __init__(self) -> None:
        super().__init__("this name is taken")


class NameTooClose(Conflict):
    code = "name_too_close"

    def __init__(self) -> None:
        super().__init__("this name can be taken for another's")


class Suspended(AdiuvaError):
    code, status = "developer_suspended", 403

    def __init__(self) -> None:
        super().__init__("staff have suspended you as a developer")


def of_user(user_id: UUID) -> Developer:
    """Return a user as a developer. Raises NoDeveloper."""
    found = Developer.objects.filter(user_id=user_id).first()
    if found is None:
        raise NoDeveloper
    return found


def active(user_id: UUID) -> Developer:
    """Return a user as a developer who may publish and sell. Raises NoDeveloper, Suspended."""
    found = of_user(user_id)
    if found.state != Developer.State.ACTIVE:
        raise Suspended
    return found


@transaction.atomic
def become(*, user_id: UUID, handle: str, name: str) -> Developer:
    """Give a user a handle, which stays theirs. Raises Invalid, NameTaken, NameTooClose, Conflict for a second."""
    least, most = _HANDLE_CHARS
    if not least <= len(handle) <= most or not _HANDLE.fullmatch(handle) or is_reserved(handle):
        raise _bad_field(
            "handle", "It is small letters, digits and single hyphens, 3 to 39, and none of our own names."
        )
    if not 1 <= len(name) <= 100 or not is_plain_name(name) or is_reserved(name):
        raise _bad_field("name", "Letters, digits and plain signs of one script, and none of our own names.")
    if Developer.objects.filter(user_id=user_id).exists():
        raise Conflict("you have a handle already")
    others = list(Developer.objects.exclude(state=Developer.State.GONE).values_list("handle", flat=True))
    if handle in others:
        raise NameTaken
    if too_close(handle, others) is not None:
        raise NameTooClose
    try:
        with transaction.atomic():
            return Developer.objects.create(user_id=user_id, handle=handle, name=name)
    except IntegrityError:
        raise NameTaken from None


def _bad_field(field: str, problem: str) -> Invalid:
    return Invalid("this cannot be taken", fields={field: [problem]})


def account_state(developer: Developer) -> AccountState:
    """Return how far a developer's account at Stripe is. `restricted`: Stripe pays nothing out until it knows more."""
    if developer.stripe_account is None:
        return "none"
    if developer.payouts_enabled:
        return "ready"
    return "restricted" if developer.account_told else "pending"


def describe(developer: Developer) -> dict[str, Any]:
    return {
        "handle": developer.handle,
        "name": developer.name,
        "state": developer.state,
        "account": account_state(developer),
        "country": developer.country,
    }


def part(user_id: UUID) -> None:
    """Withdraw the plugins of an account, in the transaction that deletes it, and forget who published them.

    Buyers keep them, and due shares are still sent to the account at Stripe.
    """
    found = Developer.objects.select_for_update(no_key=True).filter(user_id=user_id).first()
    # Also plugins whose sums of ratings change with the account's.
    plugins = Plugin.objects.filter(Q(developer__user=user_id) | Q(user_ratings__user=user_id)).values("pk")
    list(
        Plugin.objects.filter(pk__in=plugins).order_by("pk").select_for_update(no_key=True).values_list("pk")
    )
    bought = PluginPurchase.objects.of(user_id).order_by("pk")
    list(bought.select_for_update(no_key=True).values_list("pk"))  # these lose their user
    if found is None:
        return
    found.plugins.filter(state=Plugin.State.LISTED).update(state=Plugin.State.WITHDRAWN)
    of_mine = Q(giver=found) | Q(receiver=found)
    open_ones = PluginTransfer.objects.filter(of_mine, state__in=["asked", "accepted"]).order_by("pk")
    pks = list(open_ones.select_for_update(no_key=True).values_list("pk", flat=True))
    PluginTransfer.objects.filter(pk__in=pks).update(state=PluginTransfer.State.CANCELLED)
    found.user = None
    found.handle, found.name = f"gone-{uuid.uuid4().hex[:16]}", ""
    found.state = Developer.State.GONE
    found.save(update_fields=["user", "handle", "name", "state"])
