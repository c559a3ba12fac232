"""Installing, updating and removing plugins: who may, and which permissions they granted. The client acts on the
device.

A user who may install gets an address of ours with the package, which is valid for a few minutes. The version is chosen
while the plugin's row is locked, as when one is listed, yanked or revoked: an unlisted version is not installed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.core import signing
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Now

from adiuva.core.errors import AdiuvaError, Conflict, NotFound
from billing import entitlements
from billing.marketplace import buying
from billing.marketplace.buying import AlreadyBought, PaymentRequired
from billing.marketplace.errors import NoSuchPlugin
from billing.marketplace.models import Plugin, PluginVersion
from billing.marketplace.money_models import PluginPurchase
from billing.marketplace.permissions import grown
from billing.marketplace.user_models import PluginInstall
from billing.marketplace.versions import version_key

DOWNLOAD_LASTS: Final = dt.timedelta(minutes=5)
_SALT: Final = "billing.marketplace.download"
State = PluginVersion.State


class NotListed(Conflict):
    code = "not_listed"

    def __init__(self) -> None:
        super().__init__("this plugin is not offered now")


class Revoked(AdiuvaError):
    """The version was revoked. `reason` in the answer: the words of staff."""

    code, status = "revoked", 410

    def __init__(self, reason: str) -> None:
        super().__init__("this version was revoked: do not use it", reason=reason)


class PermissionsGrown(Conflict):
    """The user has to agree first. The answer has the permissions that the version asks for, and the new ones."""

    code = "permissions_grown"

    def __init__(self, permissions: Sequence[str], new: Sequence[str]) -> None:
        super().__init__(
            "this version asks for more than you have agreed to", permissions=list(permissions), new=list(new)
        )


class DownloadOver(NotFound):
    code = "download_over"

    def __init__(self) -> None:
        super().__init__("this address was good for a few minutes: install again for another")


@dataclass(frozen=True, slots=True)
class Installed:
    """The data that a client needs to fetch a version and to check it. `path` is below the site's address."""

    version: PluginVersion
    path: str


def install(
    *, user_id: UUID, plugin_id: UUID, agreed: Sequence[str] | None = None, site: str = ""
) -> Installed:
    """Install a plugin or update it, or return the address of its package once more.

    `agreed`: the permissions that the user was shown and agreed to. Older clients name none: their first install is the
    agreement to those in the catalogue, and an update that asks for more is refused. Raises NotInPlan, NoSuchPlugin,
    NotListed, Revoked, PermissionsGrown, PaymentRequired, PayoutsNotReady, StripeOff, StripeAway.
    """
    entitlements.require(user_id, "plugins")
    plugin = _find(user_id, plugin_id)
    if plugin.state == Plugin.State.LISTED and not buying.may_have(user_id, plugin):
        _have_it_bought(user_id, plugin, site)
    return _install(user_id, plugin.pk, agreed)


def _find(user_id: UUID, plugin_id: UUID) -> Plugin:
    plugin = Plugin.objects.select_related("developer").filter(pk=plugin_id).first()
    if plugin is None or (plugin.listed_at is None and plugin.developer.user_id != user_id):
        raise NoSuchPlugin
    return plugin


def _have_it_bought(user_id: UUID, plugin: Plugin, site: str) -> None:
    """Raise PaymentRequired, unless the plugin has just been paid."""
    try:
        url = buying.check_out(user_id=user_id, plugin=plugin, site=site)
    except AlreadyBought:
        if buying.may_have(user_id, plugin):
            return
        raise
    raise PaymentRequired(checkout_url=url, price_cents=plugin.price_cents, currency=plugin.currency)


@transaction.atomic
def _install(user_id: UUID, plugin_id: UUID, agreed: Sequence[str] | None) -> Installed:
    """Install a plugin. Locks the account first, then the plugin."""
    entitlements.require(user_id, "plugins", locked=True)
    plugin = (
        Plugin.objects.select_for_update(of=("self",), no_key=True)
        .select_related("developer")
        .get(pk=plugin_id)
    )
    mine = PluginInstall.objects.of(user_id).filter(plugin=plugin).first()
    version = _version_for(user_id, plugin, mine)
    if not buying.may_have(user_id, plugin):  # refunded meanwhile
        raise NotListed
    granted = mine.permissions if mine is not None and mine.removed_at is None else []
    is_update = bool(mine and mine.removed_at is None)
    agreed_to = version.permissions if agreed is None and not is_update else agreed
    if new := grown([*granted, *(agreed_to or ())], version.permissions):
        raise PermissionsGrown(version.permissions, new)
    if mine is None:
        counts = plugin.developer.user_id != user_id
        mine = PluginInstall(user_id=user_id, plugin=plugin, counted=counts)
        if counts:  # counted once for each user, however often it is installed
            Plugin.objects.filter(pk=plugin.pk).update(installs=F("installs") + 1)
    elif not is_update:
        mine.installed_at = Now()
    mine.version, mine.permissions, mine.removed_at = version, version.permissions, None
    mine.updated_at = Now()
    mine.save()
    token = signing.dumps([str(version.pk), str(user_id)], salt=_SALT)
    return Installed(version, f"/api/v1/plugins/download?token={token}")


def _version_for(user_id: UUID, plugin: Plugin, mine: PluginInstall | None) -> PluginVersion:
    """Return the version that a user may have now: the listed one, or their own if the plugin is no longer offered."""
    versions = PluginVersion.objects.filter(plugin=plugin)
    if plugin.state == Plugin.State.LISTED:
        listed = versions.filter(pk__in=[plugin.current_version_id], state=State.LISTED).first()
        if listed is not None:
            return listed
    if mine is not None and mine.removed_at is None:
        own = versions.get(pk=mine.version_id)
        if own.state == State.REVOKED:
            raise Revoked(own.reason)
        if own.state in (State.LISTED, State.YANKED) and plugin.state != Plugin.State.SUSPENDED:
            return own
    # Buyers keep it, even after its developer withdrew it.
    if plugin.state == Plugin.State.WITHDRAWN and _has_bought(user_id, plugin):
        last = versions.filter(state__in=(State.LISTED, State.YANKED)).order_by("-listed_at").first()
        if last is not None:
            return last
    revoked = versions.filter(state=State.REVOKED).order_by("-listed_at").first()
    if revoked is not None and plugin.current_version_id in (None, revoked.pk):
        raise Revoked(revoked.reason)
    raise NotListed


def _has_bought(user_id: UUID, plugin: Plugin) -> bool:
    return PluginPurchase.objects.of(user_id).owning().filter(plugin=plugin).exists()


@transaction.atomic
def uninstall(*, user_id: UUID, plugin_id: UUID) -> None:
    """Note that a user removed a plugin, if it is installed. Raises NoSuchPlugin."""
    _find(user_id, plugin_id)
    PluginInstall.objects.of(user_id).present().filter(plugin_id=plugin_id).update(removed_at=Now())


def package_of(token: str) -> PluginVersion:
    """Return the version that the address of a download names. Raises DownloadOver, Revoked."""
    try:
        version_id, user_id = signing.loads(token, salt=_SALT, max_age=DOWNLOAD_LASTS)
    except (signing.BadSignature, ValueError):
        raise DownloadOver from None
    mine = PluginInstall.objects.present().filter(user_id=user_id, version_id=version_id)
    found = mine.exclude(_is_refunded(UUID(user_id))).select_related("version").first()
    if found is None:
        raise DownloadOver
    if found.version.state == State.REVOKED:
        raise Revoked(found.version.reason)
    return found.version


def installed(user_id: UUID) -> list[dict[str, Any]]:
    """Return a user's plugins, each with its update, and `revoked` or `refunded` if it must not be used."""
    mine = (
        PluginInstall.objects.of(user_id)
        .present()
        .select_related("plugin", "version", "plugin__current_version")
        .annotate(refunded=_is_refunded(user_id))
    )
    return [_described(each) for each in mine.order_by("plugin__slug")]


def _is_refunded(user_id: UUID) -> Q:
    """Select installs whose plugin the user bought and got the money back for, unless it is free by now."""
    bought = PluginPurchase.objects.of(user_id).filter(plugin=OuterRef("plugin"))
    back = bought.filter(state__in=(PluginPurchase.State.REFUNDED, PluginPurchase.State.LOST))
    return Q(Exists(back)) & ~Q(Exists(bought.owning())) & Q(plugin__price_cents__gt=0)


def _described(mine: PluginInstall) -> dict[str, Any]:
    plugin, version = mine.plugin, mine.version
    newest = plugin.current_version if plugin.state == Plugin.State.LISTED else None
    is_newer = newest is not None and version_key(newest.version) > version_key(version.version)
    return {
        "id": plugin.pk,
        "slug": plugin.slug,
        "name": plugin.name,
        "kind": plugin.kind,
        "version": version.version,
        "permissions": mine.permissions,
        "installed_at": mine.installed_at,
        "revoked": version.reason if version.state == State.REVOKED else None,
        "refunded": mine.refunded,  # type: ignore[attr-defined]  # annotated by `installed`
        "update": {
            "version": newest.version,
            "permissions": newest.permissions,
            "new_permissions": grown(mine.permissions, newest.permissions),
        }
        if is_newer and newest is not None
        else None,
    }
