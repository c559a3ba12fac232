"""Publishes the plugins of a folder under a developer of their own, so that the catalogue of a server for trial is not
empty.

They take the way of every plugin: uploaded, checked, approved in the name of a member of the staff, signed. Only the
hold is ended at once.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final
from uuid import UUID

from django.db import transaction

from adiuva.accounts.models import User
from billing.marketplace import (
    connected_accounts,
    developers,
    drafts,
    publication,
    staff_reviews,
    submissions,
)
from billing.marketplace.build import build_package
from billing.marketplace.manifest import Manifest
from billing.marketplace.models import Developer, Plugin, PluginVersion
from billing.payments import stripe_api

EMAIL: Final = "workshop@adiuva.example"
_HANDLE: Final = "example-workshop"
_NAME: Final = "Example workshop"
_CATEGORIES: Final = {
    "calendar-importer": Plugin.Category.PLANNING,
    "invoices-to-pay": Plugin.Category.FINANCE,
    "paper-theme": Plugin.Category.DESIGN,
}
_CHECK_S: Final = 90.0
State = PluginVersion.State


class NotChecked(Exception):
    """The checks of an example did not end in time."""


def publish(folder: Path, *, reviewer_id: UUID, prices: Mapping[str, int]) -> Iterator[PluginVersion]:
    """List each plugin of a folder, one after the other; listed ones stay as they are.

    `prices`: in cents, by the plugin's id. Without Stripe all are free. Raises NotPacked, BadManifest, OSError,
    NotChecked, AdiuvaError.
    """
    developer = _developer()
    is_sold = stripe_api.is_on()
    if is_sold and prices and developer.stripe_account is None:
        connected_accounts.page_of(developer=developer)
    for manifest in sorted(folder.glob("*/manifest.json")):
        with tempfile.TemporaryFile() as package:
            described = build_package(manifest.parent, package)
            package.flush()
            version = _draft(developer, described, package, prices.get(described.id, 0) if is_sold else 0)
        yield _listed(version, reviewer_id)


@transaction.atomic
def _developer() -> Developer:
    found = Developer.objects.filter(handle=_HANDLE).first()
    if found is not None:
        return found
    user = User.objects.filter(email=EMAIL).first() or User.objects.create_user(EMAIL)
    return developers.become(user_id=user.pk, handle=_HANDLE, name=_NAME)


def _draft(developer: Developer, manifest: Manifest, package: IO[bytes], price_cents: int) -> PluginVersion:
    """Return the version of a package, uploaded unless it exists."""
    assert developer.user_id is not None
    plugin = Plugin.objects.filter(developer=developer, slug=manifest.id).first()
    if plugin is None:
        plugin = drafts.create(
            user_id=developer.user_id,
            slug=manifest.id,
            name=manifest.name,
            category=_CATEGORIES.get(manifest.id, Plugin.Category.OTHER),
            price_cents=price_cents,
        )
    found = plugin.versions.filter(version=manifest.version).first()
    return found or drafts.upload(user_id=developer.user_id, plugin_id=plugin.pk, package=package)


def _listed(version: PluginVersion, reviewer_id: UUID) -> PluginVersion:
    """Take a version to the catalogue from the state in which an earlier start has left it. Raises AdiuvaError."""
    owner = version.author.user_id
    assert owner is not None
    if version.state == State.DRAFT:
        submissions.submit(user_id=owner, plugin_id=version.plugin_id, version=version.version)
    _await_checks(version)
    if version.state == State.IN_REVIEW:
        staff_reviews.decide(
            version_id=version.pk,
            reviewer_id=reviewer_id,
            decision=staff_reviews.Decision.APPROVE,
            sha256=version.sha256,
            checklist=staff_reviews.CHECKLIST,
        )
        version.refresh_from_db()
    if version.state == State.APPROVED:
        publication.list_now(version_id=version.pk)
        version.refresh_from_db()
    return version


def _await_checks(version: PluginVersion) -> None:
    """Check a version here, unless a worker does. Raises NotChecked."""
    give_up_at = time.monotonic() + _CHECK_S
    while True:
        version.refresh_from_db()
        if version.state not in PluginVersion.UNCHECKED:
            return
        if time.monotonic() > give_up_at:
            raise NotChecked
        if not submissions.check_one(version.pk):
            time.sleep(0.2)
