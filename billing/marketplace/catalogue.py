"""The catalogue of listed plugins: search, categories, three orders.

A page takes one query, and a count that is cached for a minute.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from django.contrib.postgres.search import SearchQuery
from django.db.models import Exists, OuterRef, Q, QuerySet

from billing.marketplace.errors import NoSuchPlugin
from billing.marketplace.models import Plugin, PluginVersion
from billing.marketplace.user_models import PluginInstall

Sort = Literal["rating", "installs", "newest"]
SORTS: Final[dict[str, str]] = {"rating": "-score", "installs": "-installs", "newest": "-listed_at"}
MAX_LIMIT: Final = 100
_MAX_TERMS: Final = 8
_COUNT_LASTS_S: Final = 60.0
_MOST_COUNTS: Final = 64

# Cached counts by category, in this process, each with the time when it expires.
_counts: dict[str, tuple[int, float]] = {}


@dataclass(frozen=True, slots=True)
class CatalogueResult:
    plugins: list[Plugin]
    total: int
    page: int


def find(
    *, q: str = "", category: str = "", sort: str = "rating", page: int = 1, limit: int = 50
) -> CatalogueResult:
    """Return a page of listed plugins, from 1. Words match by their beginnings; all of them must occur."""
    rows = Plugin.objects.listed()
    if category:
        rows = rows.filter(category=category)
    if q.strip():
        terms = re.findall(r"\w+", q.lower())[:_MAX_TERMS]
        if not terms:
            return CatalogueResult([], 0, page)
        wanted = " & ".join(f"{term}:*" for term in terms)
        rows = rows.filter(words=SearchQuery(wanted, config="simple", search_type="raw"))
        total = rows.count()
    else:
        total = _count(category, rows)
    start = (page - 1) * limit
    if start >= total:
        return CatalogueResult([], total, page)
    order = (SORTS[sort], "id")
    # The index alone skips the earlier pages, however many; only the page's own rows are read.
    ids = rows.order_by(*order).values("pk")[start : start + limit]
    shown = Plugin.objects.filter(pk__in=ids).select_related("developer", "current_version")
    return CatalogueResult(list(shown.defer("current_version__manifest").order_by(*order)), total, page)


def _count(category: str, rows: QuerySet[Plugin]) -> int:
    known = _counts.get(category)
    now = time.monotonic()
    if known is None or known[1] < now:
        if len(_counts) >= _MOST_COUNTS:
            _counts.clear()
        known = _counts[category] = (rows.count(), now + _COUNT_LASTS_S)
    return known[0]


def forget_counts() -> None:
    _counts.clear()


def get(plugin_id: UUID, *, user_id: UUID | None = None) -> Plugin:
    """Return a listed plugin, or an unlisted one for its publisher and users who have it. Raises NoSuchPlugin."""
    allowed = Q(state=Plugin.State.LISTED)
    if user_id is not None:
        installed = PluginInstall.objects.of(user_id).filter(plugin=OuterRef("pk"))
        allowed |= Q(developer__user_id=user_id) | Q(Exists(installed))
    found = (
        Plugin.objects.filter(allowed, pk=plugin_id).select_related("developer", "current_version").first()
    )
    if found is None:
        raise NoSuchPlugin
    return found


def by_slug(slug: str) -> Plugin:
    """Return a listed plugin. Raises NoSuchPlugin."""
    found = Plugin.objects.listed().filter(slug=slug).select_related("developer", "current_version").first()
    if found is None:
        raise NoSuchPlugin
    return found


def history(plugin: Plugin) -> list[PluginVersion]:
    """Return the versions that were listed, newest first."""
    shown = (PluginVersion.State.LISTED, PluginVersion.State.YANKED, PluginVersion.State.REVOKED)
    rows = plugin.versions.filter(state__in=shown, listed_at__isnull=False).defer("manifest")
    return list(rows.order_by("-listed_at")[:MAX_LIMIT])


def average(plugin: Plugin) -> float | None:
    return round(plugin.stars / plugin.ratings, 2) if plugin.ratings else None


def described(plugin: Plugin) -> dict[str, Any]:
    """Return a plugin as lists show it."""
    version = plugin.current_version
    return {
        "id": plugin.pk,
        "slug": plugin.slug,
        "name": plugin.name,
        "summary": plugin.summary,
        "kind": plugin.kind,
        "category": plugin.category,
        "developer": {"handle": plugin.developer.handle, "name": plugin.developer.name},
        "version": version.version if version is not None else None,
        "permissions": version.permissions if version is not None else [],
        "size": version.size if version is not None else None,
        "price_cents": plugin.price_cents,
        "currency": plugin.currency,
        "rating": average(plugin),
        "ratings": plugin.ratings,
        "installs": plugin.installs,
        "listed_at": plugin.listed_at,
        "updated_at": version.listed_at if version is not None else None,
    }


def in_full(plugin: Plugin) -> dict[str, Any]:
    """Return a plugin as its own page shows it, with the data that a client needs to check a package."""
    version = plugin.current_version
    return {
        **described(plugin),
        "state": plugin.state,
        "manifest": version.manifest if version is not None else None,
        "sha256": version.sha256 if version is not None else None,
        "signature": version.signature if version is not None else None,
        "key_id": version.key_id if version is not None else None,
        "reviewed_at": version.reviewed_at if version is not None else None,
        "versions": [
            {
                "version": each.version,
                "state": each.state,
                "reason": each.reason,
                "listed_at": each.listed_at,
                "permissions": each.permissions,
            }
            for each in history(plugin)
        ],
    }
