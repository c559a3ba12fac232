"""The states of a version, the steps between them, and a plugin's offer, which follows the states of its versions.

Each step locks the plugin, then the version: so an installation, which locks the plugin as well, sees either the state
before or the one after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import structlog
from django.utils import timezone

from billing.marketplace.errors import NoSuchVersion, WrongState
from billing.marketplace.models import Plugin, PluginVersion
from billing.marketplace.versions import version_key

State = PluginVersion.State

NEXT: Final[Mapping[str, frozenset[str]]] = {
    State.DRAFT: frozenset({State.SUBMITTED}),
    State.SUBMITTED: frozenset({State.CHECKING, State.WITHDRAWN}),
    State.CHECKING: frozenset({State.SUBMITTED, State.IN_REVIEW, State.CHANGES_ASKED, State.WITHDRAWN}),
    State.IN_REVIEW: frozenset({State.APPROVED, State.CHANGES_ASKED, State.REJECTED, State.WITHDRAWN}),
    State.CHANGES_ASKED: frozenset({State.SUBMITTED, State.WITHDRAWN}),
    State.REJECTED: frozenset(),
    State.WITHDRAWN: frozenset(),
    State.APPROVED: frozenset({State.LISTED, State.WITHDRAWN, State.REVOKED}),
    State.LISTED: frozenset({State.YANKED, State.REVOKED}),
    State.YANKED: frozenset({State.LISTED, State.REVOKED}),
    State.REVOKED: frozenset({State.APPROVED, State.LISTED, State.YANKED}),
}

log = structlog.get_logger(__name__)


def locked(version_id: UUID) -> PluginVersion:
    """Return a version, locked after its plugin until the transaction ends. Raises NoSuchVersion."""
    plugin_id = PluginVersion.objects.filter(pk=version_id).values_list("plugin_id", flat=True).first()
    if plugin_id is None:
        raise NoSuchVersion
    plugin = (
        Plugin.objects.select_for_update(of=("self",), no_key=True)
        .select_related("developer")
        .get(pk=plugin_id)
    )
    version = PluginVersion.objects.select_for_update(no_key=True).filter(pk=version_id).first()
    if version is None:
        raise NoSuchVersion
    version.plugin = plugin
    return version


def move(version: PluginVersion, to: State, **changes: Any) -> None:
    """Take a locked version to another state, and its plugin's offer with it. Raises WrongState."""
    if to not in NEXT[version.state] or (version.state == State.REVOKED and "before_revoked" not in changes):
        raise WrongState(version.state)  # only restoring takes a revocation back
    before, version.state = version.state, to
    for name, value in changes.items():
        setattr(version, name, value)
    version.revoke_lease()
    version.save(update_fields=["state", "lease_until", "fence", *changes])
    log.info("plugin_version.moved", version_id=str(version.pk), before=before, after=str(to))
    if State.LISTED in (before, to):
        settle(version.plugin)


def settle(plugin: Plugin) -> None:
    """Make a locked plugin offer the newest of its listed versions, if there is one."""
    listed = list(plugin.versions.filter(state=State.LISTED))
    newest = max(listed, key=lambda version: version_key(version.version), default=None)
    plugin.current_version = newest
    if newest is not None:
        plugin.name, plugin.summary = newest.manifest["name"], newest.manifest["summary"]
        plugin.kind = newest.manifest["kind"]
        plugin.listed_at = plugin.listed_at or timezone.now()
    if plugin.state in (Plugin.State.DRAFT, Plugin.State.LISTED):
        plugin.state = Plugin.State.LISTED if newest is not None else Plugin.State.DRAFT
    plugin.save(update_fields=["current_version", "name", "summary", "kind", "listed_at", "state"])
