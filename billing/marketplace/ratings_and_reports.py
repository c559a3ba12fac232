"""Ratings of plugins, by users who have had one installed for a day, and reports, which staff read."""

from __future__ import annotations

import datetime as dt
from typing import Final
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models.functions import Now

from billing.marketplace import catalogue, publication
from billing.marketplace.errors import NotInstalled
from billing.marketplace.models import Plugin
from billing.marketplace.user_models import PluginInstall, PluginRating, PluginReport

log = structlog.get_logger(__name__)

RATES_AFTER: Final = dt.timedelta(hours=24)
# This many reports of something malicious, by accounts of this age that have it installed, take a plugin down until
# staff have looked. Fewer reports or newer accounts do not: anybody who dislikes a plugin could make some.
HIDES_FROM: Final = 5
_OLD_ACCOUNT: Final = dt.timedelta(days=30)


@transaction.atomic
def rate(*, user_id: UUID, plugin_id: UUID, stars: int) -> Plugin:
    """Rate a plugin, or change one's rating. Raises NoSuchPlugin, NotInstalled."""
    plugin = catalogue.get(plugin_id, user_id=user_id)
    installed = PluginInstall.objects.of(user_id).present().filter(plugin=plugin)
    if (
        plugin.developer.user_id == user_id
        or not installed.filter(installed_at__lte=Now() - RATES_AFTER).exists()
    ):
        raise NotInstalled
    PluginRating.objects.update_or_create(
        user_id=user_id, plugin=plugin, defaults={"stars": stars}, create_defaults={"stars": stars}
    )
    plugin.refresh_from_db(fields=["stars", "ratings", "score"])
    return plugin


@transaction.atomic
def take_rating_back(*, user_id: UUID, plugin_id: UUID) -> None:
    """Delete one's rating of a plugin. Raises NoSuchPlugin."""
    plugin = catalogue.get(plugin_id, user_id=user_id)
    PluginRating.objects.filter(user_id=user_id, plugin=plugin).delete()


@transaction.atomic
def report(*, user_id: UUID, plugin_id: UUID, reason: str, text: str = "") -> None:
    """Tell staff that something is wrong. An open report of the same user is replaced. Raises NoSuchPlugin."""
    plugin = catalogue.get(plugin_id, user_id=user_id)
    PluginReport.objects.update_or_create(
        user_id=user_id,
        plugin=plugin,
        closed_at=None,
        defaults={"reason": reason, "text": text, "version_id": plugin.current_version_id},
    )
    log.warning("plugin.reported", plugin_id=str(plugin.pk), reason=reason)
    if plugin.state == Plugin.State.LISTED and _weight(plugin) >= HIDES_FROM:
        publication.suspend(plugin_id=plugin.pk, suspended=True)
        log.error("plugin.suspended", plugin_id=str(plugin.pk))


def _weight(plugin: Plugin) -> int:
    users = PluginInstall.objects.filter(plugin=plugin, installed_at__lte=Now() - RATES_AFTER)
    grave = PluginReport.objects.filter(
        plugin=plugin, closed_at=None, reason=PluginReport.Reason.MALICIOUS, user__in=users.values("user")
    )
    return grave.filter(user__created_at__lte=Now() - _OLD_ACCOUNT).count()
