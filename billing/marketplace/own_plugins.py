"""Descriptions of a developer's own plugins and versions, for REST and the developer's pages."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from adiuva.core.language import said
from billing.marketplace import catalogue, drafts
from billing.marketplace.errors import NoSuchVersion
from billing.marketplace.findings import Finding
from billing.marketplace.models import Plugin, PluginVersion


def plugins(user_id: UUID) -> list[dict[str, Any]]:
    rows = Plugin.objects.of(user_id).select_related("developer", "current_version").order_by("slug")
    return [{**catalogue.described(plugin), "state": plugin.state} for plugin in rows]


def versions(user_id: UUID, plugin_id: UUID) -> list[dict[str, Any]]:
    """Return the versions of a user's plugin. Raises NoSuchPlugin."""
    plugin = drafts.owned(user_id, plugin_id)
    rows = plugin.versions.prefetch_related("checks").defer("manifest").order_by("-created_at", "-id")
    return [version_body(version, with_checks=True) for version in rows]


def version(user_id: UUID, plugin_id: UUID, number: str) -> dict[str, Any]:
    """Return a version of a user's plugin. Raises NoSuchPlugin, NoSuchVersion."""
    plugin = drafts.owned(user_id, plugin_id)
    found = plugin.versions.prefetch_related("checks").filter(version=number).first()
    if found is None:
        raise NoSuchVersion
    return version_body(found, with_checks=True)


def version_body(version: PluginVersion, *, with_checks: bool = False) -> dict[str, Any]:
    """Return a version as JSON, with `findings` in the active language."""
    checks = list(version.checks.all()) if with_checks else []
    return {
        "version": version.version,
        "state": version.state,
        "reason": said(version.reason) if version.reason else "",
        "sha256": version.sha256,
        "size": version.size,
        "permissions": version.permissions,
        "created_at": version.created_at,
        "submitted_at": version.submitted_at,
        "list_at": version.list_at if version.state == PluginVersion.State.APPROVED else None,
        "listed_at": version.listed_at,
        "checks": {check.name: check.result for check in checks},
        "findings": [_finding(body) for check in checks for body in check.findings],
    }


def _finding(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "problem": said(Finding.of_body(body).problem)}
