"""Rows of the marketplace, as services would leave them, without the bytes of packages."""

from __future__ import annotations

import uuid
from typing import Any

from django.utils import timezone

from billing.models import Developer, Plugin, PluginCheck, PluginReview, PluginVersion
from tests.factories import somebody

State = PluginVersion.State


def a_developer(user_id: uuid.UUID | None = None, **fields: Any) -> Developer:
    handle = f"dev-{uuid.uuid4().hex[:12]}"
    return Developer.objects.create(
        user_id=user_id or somebody().id, **{"handle": handle, "name": handle, **fields}
    )


def a_plugin(developer: Developer | None = None, **fields: Any) -> Plugin:
    slug = f"plugin-{uuid.uuid4().hex[:12]}"
    return Plugin.objects.create(
        developer=developer or a_developer(), **{"slug": slug, "name": slug, "kind": "theme", **fields}
    )


def a_version(plugin: Plugin, version: str = "1.0.0", **fields: Any) -> PluginVersion:
    """A draft."""
    manifest = {"id": plugin.slug, "name": plugin.name, "version": version, "kind": "theme", "files": {}}
    manifest |= {"summary": plugin.summary, "license": "MIT"}
    return PluginVersion.objects.create(
        plugin=plugin,
        version=version,
        author=plugin.developer,
        **{
            "manifest": manifest,
            "sha256": uuid.uuid4().hex * 2,
            "size": 1,
            "object": f"v1/00/{uuid.uuid4().hex}",
            **fields,
        },
    )


def approve(version: PluginVersion) -> PluginVersion:
    """Have a draft checked and approved by somebody of the staff; its hold is over."""
    PluginCheck.objects.create(version=version, name="structure", result="passed")
    PluginReview.objects.create(
        version=version, reviewer=uuid.uuid4(), decision="approve", sha256=version.sha256
    )
    now = timezone.now()
    _set(version, state=State.APPROVED, signature="c2lnbmVk", key_id="test", reviewed_at=now, list_at=now)
    return version


def a_listed_plugin(developer: Developer | None = None, **fields: Any) -> Plugin:
    plugin = a_plugin(developer, **fields)
    version = approve(a_version(plugin))
    now = timezone.now()
    _set(version, state=State.LISTED, listed_at=now)
    Plugin.objects.filter(pk=plugin.pk).update(
        state=Plugin.State.LISTED, current_version=version, listed_at=now
    )
    plugin.refresh_from_db()
    return plugin


def _set(version: PluginVersion, **fields: Any) -> None:
    PluginVersion.objects.filter(pk=version.pk).update(**fields)
    version.refresh_from_db()
