"""References from the marketplace's rows to objects of the store."""

from __future__ import annotations

from collections.abc import Collection

from billing.marketplace.models import PluginVersion


def referred(names: Collection[str]) -> set[str]:
    """Return those of these objects that are a version's package."""
    return set(PluginVersion.objects.filter(object__in=names).values_list("object", flat=True))


def expected(shard: str) -> set[str]:
    """Return the packages of a part of the store."""
    return set(PluginVersion.objects.filter(object__startswith=f"{shard}/").values_list("object", flat=True))


def lost(name: str) -> None:
    """Note that a package is gone: its download says so, and so does the log. Only its developer has another."""
