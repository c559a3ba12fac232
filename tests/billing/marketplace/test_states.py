"""Whatever developers and staff do in whatever order, a plugin offers its newest listed version, and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.marketplace import publication, revocations, states, submissions
from billing.marketplace.errors import WrongState
from billing.marketplace.versions import version_key
from billing.models import Plugin, PluginVersion
from tests.billing.marketplace.factories import State, a_plugin, a_version, approve

pytestmark = pytest.mark.django_db

VERSIONS = ("1.9.0", "1.10.0", "2.0.0-beta.1")
STAFF = uuid.uuid4()


def _of_developer(act: Callable[..., Any]) -> Callable[[PluginVersion], Any]:
    def do(version: PluginVersion) -> Any:
        owner = version.plugin.developer.user_id
        return act(user_id=owner, plugin_id=version.plugin_id, version=version.version)

    return do


def _of_plugin(act: Callable[..., Any]) -> Callable[[PluginVersion], Any]:
    def do(version: PluginVersion) -> Any:
        return act(user_id=version.plugin.developer.user_id, plugin_id=version.plugin_id)

    return do


# By name: what is done, and to which state it leads; None where it is not about the version.
ACTS: dict[str, tuple[Callable[[PluginVersion], Any], str | None]] = {
    "list": (lambda version: publication.list_now(version_id=version.pk), State.LISTED),
    "yank": (_of_developer(publication.yank), State.YANKED),
    "unyank": (_of_developer(publication.unyank), State.LISTED),
    "take back": (_of_developer(submissions.withdraw), State.WITHDRAWN),
    "revoke": (
        lambda version: publication.revoke(version_id=version.pk, by=STAFF, reason="x"),
        State.REVOKED,
    ),
    "restore": (lambda version: publication.restore(version_id=version.pk, by=STAFF), None),
    "withdraw": (_of_plugin(publication.withdraw), None),
    "offer": (_of_plugin(publication.offer_again), None),
    "suspend": (lambda version: publication.suspend(plugin_id=version.plugin_id, suspended=True), None),
    "allow": (lambda version: publication.suspend(plugin_id=version.plugin_id, suspended=False), None),
}

NARROW = ("list", "unyank")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(ACTS)), st.integers(0, len(VERSIONS) - 1)), max_size=14))
def test_a_plugin_offers_its_newest_listed_version_and_nothing_else(steps: list[tuple[str, int]]) -> None:
    plugin = a_plugin()
    for number in VERSIONS:
        manifest = {"name": f"Report {number}", "summary": "", "kind": "theme"}
        approve(a_version(plugin, number, manifest=manifest))
    numbers = [_counter()]
    for name, at in steps:
        version = PluginVersion.objects.select_related("plugin__developer").get(
            plugin=plugin, version=VERSIONS[at]
        )
        act, to = ACTS[name]
        before = version.state
        try:
            with transaction.atomic():
                act(version)
        except WrongState:
            # What is revoked comes back by its restoring alone, and each act begins at a state of its own.
            assert before == State.REVOKED or to is None or to not in states.NEXT[before] or name in NARROW
        else:
            version.refresh_from_db()
            assert to is None or version.state == to
            if name in ("revoke", "restore"):
                numbers.append(_counter())
        _offer_is_right(plugin)
    assert numbers == sorted(set(numbers))


def _counter() -> int:
    found: int = revocations.signed_list().statement["counter"]
    return found


def _offer_is_right(plugin: Plugin) -> None:
    with connection.cursor() as cursor:  # what is checked at the end of a transaction
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("SET CONSTRAINTS ALL DEFERRED")
    plugin.refresh_from_db()
    versions = list(PluginVersion.objects.filter(plugin=plugin))
    listed = [version for version in versions if version.state == State.LISTED]
    newest = max(listed, key=lambda version: version_key(version.version), default=None)
    assert plugin.current_version == newest
    if plugin.state in (Plugin.State.DRAFT, Plugin.State.LISTED):
        assert (plugin.state == Plugin.State.LISTED) == (newest is not None)
    told = {
        each["version"]
        for each in revocations.signed_list().statement["revoked"]
        if each["plugin"] == plugin.slug
    }
    assert told == {version.version for version in versions if version.state == State.REVOKED}
