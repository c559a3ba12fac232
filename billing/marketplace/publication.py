"""States of a version after its approval: listed when its hold is over, yanked, revoked, restored.

Yanked: it cannot be installed any more, and its users keep it. Revoked: clients disable it, and delete nothing; so it
can be restored.
"""

from __future__ import annotations

from uuid import UUID

from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.core.errors import AdiuvaError, Invalid
from adiuva.core.logging import log_failure
from billing.marketplace import drafts, revocations, states, submissions
from billing.marketplace.errors import NoSuchPlugin, WrongState
from billing.marketplace.models import Developer, Plugin, PluginVersion, Revocation
from billing.marketplace.states import State

_AT_ONCE = 100


def list_due() -> int:
    """List versions whose hold is over. Returns how many."""
    due = list(PluginVersion.objects.to_list().order_by("list_at").values_list("pk", flat=True)[:_AT_ONCE])
    return sum(_list(version_id) for version_id in due)


def _list(version_id: UUID) -> bool:
    try:
        with transaction.atomic():
            version = states.locked(version_id)
            if version.state != State.APPROVED or version.list_at is None or version.list_at > timezone.now():
                return False  # another worker was first, or it was stopped
            states.move(version, State.LISTED, listed_at=timezone.now())
    except AdiuvaError as error:
        log_failure("plugin_version.not_listed", error, version_id=str(version_id))
        return False
    return True


@transaction.atomic
def list_now(*, version_id: UUID) -> PluginVersion:
    """End a hold early, for staff. Raises NoSuchVersion, WrongState."""
    version = states.locked(version_id)
    if version.state != State.APPROVED:
        raise WrongState(version.state)
    now = timezone.now()
    states.move(version, State.LISTED, list_at=now, listed_at=now)
    return version


@transaction.atomic
def yank(*, user_id: UUID, plugin_id: UUID, version: str, reason: str = "") -> PluginVersion:
    """Take a version off the list, for its developer. Raises NoSuchPlugin, NoSuchVersion, WrongState."""
    found = submissions.owned(user_id, plugin_id, version)
    if found.state != State.LISTED:
        raise WrongState(found.state)
    states.move(found, State.YANKED, reason=reason)
    return found


@transaction.atomic
def unyank(*, user_id: UUID, plugin_id: UUID, version: str) -> PluginVersion:
    """Put a yanked version back. Raises what `yank` does."""
    found = submissions.owned(user_id, plugin_id, version)
    if found.state != State.YANKED:
        raise WrongState(found.state)
    states.move(found, State.LISTED, reason="")
    return found


@transaction.atomic
def withdraw(*, user_id: UUID, plugin_id: UUID) -> Plugin:
    """Take a plugin out of the catalogue, for its developer. Its users keep it. Raises NoSuchPlugin."""
    plugin = drafts.owned(user_id, plugin_id, locked=True)
    if plugin.state in (Plugin.State.DRAFT, Plugin.State.LISTED):
        plugin.state = Plugin.State.WITHDRAWN
        plugin.save(update_fields=["state"])
    return plugin


@transaction.atomic
def offer_again(*, user_id: UUID, plugin_id: UUID) -> Plugin:
    """Take `withdraw` back. Raises NoSuchPlugin."""
    plugin = drafts.owned(user_id, plugin_id, locked=True)
    if plugin.state == Plugin.State.WITHDRAWN and plugin.developer.state == Developer.State.ACTIVE:
        plugin.state = Plugin.State.DRAFT
        states.settle(plugin)
    return plugin


@transaction.atomic
def suspend(*, plugin_id: UUID, suspended: bool) -> Plugin:
    """Take a plugin out of the catalogue, or put it back, for staff. Raises NoSuchPlugin."""
    plugin = Plugin.objects.select_for_update(no_key=True).filter(pk=plugin_id).first()
    if plugin is None:
        raise NoSuchPlugin
    if suspended:
        plugin.state = Plugin.State.SUSPENDED
        plugin.save(update_fields=["state"])
    elif plugin.state == Plugin.State.SUSPENDED:
        plugin.state = Plugin.State.DRAFT
        states.settle(plugin)
    return plugin


@transaction.atomic
def revoke(*, version_id: UUID, by: UUID, reason: str) -> PluginVersion:
    """Revoke a version, which clients then disable, for staff. Raises NoSuchVersion, WrongState, Invalid."""
    if not reason.strip():
        raise Invalid("say why: the users read it", fields={"reason": ["say why: the users read it"]})
    version = states.locked(version_id)
    states.move(version, State.REVOKED, reason=reason, before_revoked=version.state)
    Revocation.objects.create(version=version, reason=reason, by=by)
    revocations.count_up()
    return version


@transaction.atomic
def restore(*, version_id: UUID, by: UUID) -> PluginVersion:
    """Take a revocation back, for staff. Raises NoSuchVersion, WrongState."""
    version = states.locked(version_id)
    if version.state != State.REVOKED:
        raise WrongState(version.state)
    states.move(version, State(version.before_revoked), reason="", before_revoked="")
    Revocation.objects.in_force().filter(version=version).update(restored_at=Now(), restored_by=by)
    revocations.count_up()
    return version
