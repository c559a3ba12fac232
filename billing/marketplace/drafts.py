"""A developer's work on plugins before review: create and change them, upload and delete versions.

A package is checked before it is stored. A package that cannot be published leaves nothing behind, and its version
number stays free.
"""

from __future__ import annotations

import datetime as dt
from typing import IO, Any, Final
from uuid import UUID

import structlog
from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from adiuva.core.errors import Conflict, Invalid, Text, Unavailable
from adiuva.object_store.models import Garbage
from adiuva.object_store.store import PIECE_BYTES, new_name, store
from billing.marketplace import developers, isolated_checks
from billing.marketplace.checks import Report
from billing.marketplace.developers import NameTaken, NameTooClose
from billing.marketplace.errors import NoSuchPlugin, NoSuchVersion, PackageRefused, VersionExists, WrongState
from billing.marketplace.findings import Finding
from billing.marketplace.manifest import MANIFEST_NAME, Manifest
from billing.marketplace.models import MIN_PRICE_CENTS, Developer, Plugin, PluginVersion
from billing.marketplace.names import NAME_PROBLEM, is_plain_name, is_reserved, skeleton, too_close

log = structlog.get_logger(__name__)

MAX_PLUGINS: Final = 50
MAX_DRAFTS: Final = 20
# How long the bytes of an upload are kept if no row comes to refer to them.
_STORING: Final = dt.timedelta(hours=1)


class CheckAway(Unavailable):
    code = "check_away"

    def __init__(self) -> None:
        super().__init__("the package could not be checked just now: try again", retry_after_s=30)


class TooMany(Conflict):
    code = "too_many"


def owned(user_id: UUID, plugin_id: UUID, *, locked: bool = False) -> Plugin:
    """Return a plugin that a user publishes. Raises NoSuchPlugin."""
    plugins = Plugin.objects.of(user_id).select_related("developer")
    if locked:
        plugins = plugins.select_for_update(of=("self",), no_key=True)
    found = plugins.filter(pk=plugin_id).first()
    if found is None:
        raise NoSuchPlugin
    return found


@transaction.atomic
def create(*, user_id: UUID, slug: str, name: str, category: str, price_cents: int = 0) -> Plugin:
    """Take the id of a new plugin. Raises Invalid, NameTaken, NameTooClose, NoDeveloper, Suspended, TooMany."""
    developer = developers.active(user_id)
    Developer.objects.select_for_update(no_key=True).get(pk=developer.pk)
    if Plugin.objects.filter(developer=developer).count() >= MAX_PLUGINS:
        raise TooMany(Text("a developer has at most {most} plugins", most=MAX_PLUGINS))
    _check_name(name)
    if is_reserved(slug):
        raise Invalid("this name speaks for Adiuva", fields={"slug": ["this name speaks for Adiuva"]})
    _check_price(price_cents)
    if Plugin.objects.filter(slug=slug).exists():
        raise NameTaken
    check_others(developer, slug, name)
    try:
        with transaction.atomic():
            return Plugin.objects.create(
                developer=developer, slug=slug, name=name, category=category, price_cents=price_cents
            )
    except IntegrityError:
        raise NameTaken from None


def check_others(developer: Developer, slug: str, name: str) -> None:
    """Raise NameTooClose if people can mistake it for another developer's plugin."""
    theirs = Plugin.objects.exclude(developer=developer).exclude(
        developer__state=Developer.State.GONE, state=Plugin.State.DRAFT
    )
    names = theirs.values_list("slug", "name")
    if too_close(slug, (each for each, _ in names)) is not None:
        raise NameTooClose
    mine = skeleton(name)
    if any(skeleton(other) == mine for _, other in names):
        raise NameTooClose


@transaction.atomic
def change(*, user_id: UUID, plugin_id: UUID, **changes: Any) -> Plugin:
    """Change `category` or `price_cents`; earlier buyers are not affected. Raises NoSuchPlugin, Invalid."""
    plugin = owned(user_id, plugin_id, locked=True)
    _check_price(changes.get("price_cents", 0))
    for name in changes.keys() & {"category", "price_cents"}:
        setattr(plugin, name, changes[name])
    plugin.save(update_fields=["category", "price_cents"])
    return plugin


def _check_name(name: str) -> None:
    if not is_plain_name(name) or is_reserved(name):
        problem = Text("this name cannot be shown: {why}", why=NAME_PROBLEM)
        raise Invalid(problem, fields={"name": [problem]})


def _check_price(cents: int) -> None:
    if cents and cents < MIN_PRICE_CENTS:
        problem = Text("a price is at least {cents} cents, or nothing", cents=MIN_PRICE_CENTS)
        raise Invalid(problem, fields={"price_cents": [problem]})


def may_upload(*, user_id: UUID, plugin_id: UUID) -> None:
    """Refuse an upload before its bytes come. Raises NoSuchPlugin, NoDeveloper, Suspended, TooMany."""
    developers.active(user_id)
    plugin = owned(user_id, plugin_id)
    if plugin.versions.filter(state=PluginVersion.State.DRAFT).count() >= MAX_DRAFTS:
        raise TooMany(Text("a plugin has at most {most} drafts: delete some", most=MAX_DRAFTS))


def upload(*, user_id: UUID, plugin_id: UUID, package: IO[bytes]) -> PluginVersion:
    """Check a package, which is a file on disk, and keep it as a draft.

    Raises PackageRefused, VersionExists, CheckAway, StorageFull, StorageAway, and what `may_upload` raises.
    """
    may_upload(user_id=user_id, plugin_id=plugin_id)
    plugin = owned(user_id, plugin_id)
    manifest, report = _checked(plugin, package)
    if PluginVersion.objects.filter(plugin=plugin, version=manifest.version).exists():
        raise VersionExists(manifest.version)
    name = _stored(package, report.size)
    try:
        with transaction.atomic():
            plugin = owned(user_id, plugin_id, locked=True)
            version = PluginVersion.objects.create(
                plugin=plugin,
                version=manifest.version,
                manifest=manifest.model_dump(mode="json"),
                permissions=sorted(manifest.permissions),
                sha256=report.sha256,
                size=report.size,
                object=name,
                author=plugin.developer,
            )
            Garbage.objects.filter(name=name).delete()
    except IntegrityError:
        Garbage.objects.filter(name=name).update(not_before=Now())
        raise VersionExists(manifest.version) from None
    log.info("plugin_version.uploaded", version_id=str(version.pk), size=report.size)
    return version


def _checked(plugin: Plugin, package: IO[bytes]) -> tuple[Manifest, Report]:
    try:
        report = isolated_checks.check(package)
    except isolated_checks.Unchecked:
        raise CheckAway from None
    if report.manifest is None or not report.passed:
        if report.manifest is not None and not report.findings:  # a check broke
            raise CheckAway
        raise PackageRefused(report.findings)
    if report.manifest.id != plugin.slug:
        problem = Text("the manifest's id is not this plugin's: {slug}", slug=plugin.slug)
        raise PackageRefused([Finding("manifest", problem, MANIFEST_NAME)])
    return report.manifest, report


def _stored(package: IO[bytes], size: int) -> str:
    """Store the bytes, and return the object's name. The garbage queue lists them until a row refers to them."""
    name = new_name()
    Garbage.objects.create(name=name, not_before=Now() + _STORING)
    package.seek(0)
    with store().sink(name) as sink:
        left = size
        while left and (piece := package.read(min(PIECE_BYTES, left))):
            sink.write(piece)
            left -= len(piece)
        sink.finish()
    return name


@transaction.atomic
def delete(*, user_id: UUID, plugin_id: UUID, version: str) -> None:
    """Delete a draft; its number is free again. Raises NoSuchPlugin, NoSuchVersion, WrongState."""
    plugin = owned(user_id, plugin_id, locked=True)
    found = plugin.versions.select_for_update(no_key=True).filter(version=version).first()
    if found is None:
        raise NoSuchVersion
    if found.state != PluginVersion.State.DRAFT:
        raise WrongState(found.state)
    found.delete()
