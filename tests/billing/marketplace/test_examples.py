"""The example plugins take the way of every plugin into the catalogue, once."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from billing.marketplace import examples, staff_reviews
from billing.marketplace.signing import Signed, plugin_statement, verify
from billing.models import Plugin, PluginVersion
from tests.factories import somebody

pytestmark = pytest.mark.django_db
SHIPPED = Path(__file__).parents[3] / "examples" / "plugins"


def test_an_example_is_checked_approved_signed_and_listed_once(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / "paper-theme", tmp_path / "paper-theme")
    reviewer = somebody(is_staff=True)
    for _ in range(2):
        said = io.StringIO()
        call_command(
            "publish_examples", reviewer.email, folder=tmp_path, price=["paper-theme=200"], stdout=said
        )
        assert said.getvalue() == "paper-theme 1.0.0: Listed\n"
    (version,) = PluginVersion.objects.filter(plugin__slug="paper-theme")
    plugin = Plugin.objects.get(slug="paper-theme")
    assert (plugin.state, plugin.current_version, plugin.category) == ("listed", version, "design")
    assert plugin.price_cents == 0  # nothing can be paid here
    assert version.reviews.get().reviewer == reviewer.id
    assert {check.blocks for check in version.checks.all()} == {False}
    assert version.reviewed_at is not None
    statement = plugin_statement(
        plugin=plugin.slug,
        version=version.version,
        sha256=version.sha256,
        size=version.size,
        permissions=version.permissions,
        reviewed_at=version.reviewed_at,
    )
    verify("plugin", Signed(statement, version.signature, version.key_id), staff_reviews.keys().public_keys())
    # Whoever publishes them signs in to nothing.
    assert plugin.developer.user is not None and not plugin.developer.user.has_usable_password()
    assert plugin.developer.user.email == examples.EMAIL


def test_examples_are_not_for_production_and_need_somebody_of_the_staff(settings: Any) -> None:
    with pytest.raises(CommandError, match="no staff account"):
        call_command("publish_examples", somebody().email)
    settings.PRODUCTION = True
    with pytest.raises(CommandError, match="In production"):
        call_command("publish_examples", somebody(is_staff=True).email)
