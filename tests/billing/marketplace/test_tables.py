"""Invariants of the marketplace's tables, whatever code does."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from django.db import IntegrityError, connection, transaction

from billing.models import (
    DeveloperPayment,
    Plugin,
    PluginCheck,
    PluginPurchase,
    PluginRating,
    PluginReview,
    PluginVersion,
)
from tests.billing.marketplace.factories import State, a_listed_plugin, a_plugin, a_version, approve
from tests.factories import somebody

pytestmark = pytest.mark.django_db


def _refused(row: PluginVersion, **fields: object) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        PluginVersion.objects.filter(pk=row.pk).update(**fields)


@pytest.mark.parametrize("column", ["sha256", "object", "version", "manifest", "size", "permissions"])
def test_a_version_never_changes(column: str) -> None:
    version = a_version(a_plugin())
    other = {"manifest": {}, "size": 2, "permissions": ["network"]}.get(column, "other")
    _refused(version, **{column: other})


def test_only_a_draft_is_deleted_and_its_package_with_it() -> None:
    version = a_version(a_plugin())
    version.delete()
    with connection.cursor() as cursor:
        cursor.execute("SELECT owner FROM object_store_garbage WHERE name = %s", [version.object])
        assert cursor.fetchone() == (None,)
    kept = approve(a_version(a_plugin()))
    with pytest.raises(IntegrityError), transaction.atomic():
        PluginVersion.objects.filter(pk=kept.pk).delete()


def test_only_another_persons_approval_of_these_bytes_lets_a_version_out() -> None:
    version = a_version(a_plugin())
    PluginCheck.objects.create(version=version, name="structure", result="passed")
    signed = {"signature": "x", "key_id": "k", "reviewed_at": "2030-01-01T00:00:00Z", "list_at": None}
    _refused(version, state=State.APPROVED, **signed)
    owner, stranger = version.plugin.developer.user_id, uuid.uuid4()
    for reviewer, decision, sha256 in (
        (owner, "approve", version.sha256),
        (stranger, "ask_changes", version.sha256),
        (stranger, "approve", "0" * 64),
    ):
        PluginReview.objects.create(version=version, reviewer=reviewer, decision=decision, sha256=sha256)
        _refused(version, state=State.APPROVED, **signed)
    PluginReview.objects.create(version=version, reviewer=stranger, decision="approve", sha256=version.sha256)
    _refused(version, state=State.APPROVED)  # unsigned
    PluginVersion.objects.filter(pk=version.pk).update(state=State.APPROVED, **signed)


def test_a_check_that_blocks_or_was_not_made_lets_nothing_out() -> None:
    version = a_version(a_plugin())
    PluginReview.objects.create(
        version=version, reviewer=uuid.uuid4(), decision="approve", sha256=version.sha256
    )
    signed = {"signature": "x", "key_id": "k", "reviewed_at": "2030-01-01T00:00:00Z", "state": State.APPROVED}
    _refused(version, **signed)
    PluginCheck.objects.create(version=version, name="structure", result="passed")
    PluginCheck.objects.create(version=version, name="secrets", result="error", blocks=True)
    _refused(version, **signed)


def test_a_listed_plugin_offers_a_listed_version_of_its_own() -> None:
    plugin, other = a_listed_plugin(), a_listed_plugin()
    for change in (
        lambda: PluginVersion.objects.filter(pk=plugin.current_version_id).update(state=State.YANKED),
        lambda: Plugin.objects.filter(pk=plugin.pk).update(current_version=other.current_version_id),
        lambda: Plugin.objects.filter(pk=plugin.pk).update(current_version=None),
    ):
        with pytest.raises(IntegrityError), transaction.atomic():
            change()
            with connection.cursor() as cursor:
                cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


def _too_much_back(sale: PluginPurchase, sent: DeveloperPayment) -> None:
    """The sale adds up, since of this sum another row was kept; the transfer does not."""
    for kind, transfer in (("reversal", sent), ("kept", None)):
        DeveloperPayment.objects.create(
            developer_id=sale.developer_id,
            purchase=sale,
            kind=kind,
            cents=201,
            currency="eur",
            transfer=transfer,
        )


def test_what_is_settled_of_a_sale_is_what_its_payments_add_up_to() -> None:
    plugin = a_listed_plugin(price_cents=1000)
    sale = PluginPurchase.objects.create(
        plugin=plugin, developer=plugin.developer, total_cents=1000, settled_cents=0
    )

    def refused(act: Callable[[], object]) -> None:
        with pytest.raises(IntegrityError), transaction.atomic():
            act()
            with connection.cursor() as cursor:
                cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")

    def pay(kind: str, cents: int, settled: int, **fields: object) -> DeveloperPayment:
        with transaction.atomic():
            made = DeveloperPayment.objects.create(
                developer=plugin.developer, purchase=sale, kind=kind, cents=cents, currency="eur", **fields
            )
            PluginPurchase.objects.filter(pk=sale.pk).update(settled_cents=settled)
            with connection.cursor() as cursor:
                cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
                cursor.execute("SET CONSTRAINTS ALL DEFERRED")
        return made

    refused(lambda: pay("transfer", 700, 699))
    sent = pay("transfer", 700, 700)
    refused(lambda: PluginPurchase.objects.filter(pk=sale.pk).update(settled_cents=0))
    pay("reversal", 500, 200, transfer=sent)
    refused(lambda: _too_much_back(sale, sent))
    rows = DeveloperPayment.objects.filter(pk=sent.pk)
    for changes in ({"cents": 1}, {"kind": "kept"}, {"currency": "usd"}):
        refused(lambda changes=changes: rows.update(**changes))  # type: ignore[misc]
    rows.update(state="done", stripe_id="tr_1")
    for changes in ({"state": "open"}, {"state": "failed"}, {"stripe_id": "tr_2"}):
        refused(lambda changes=changes: rows.update(**changes))  # type: ignore[misc]
    refused(rows.delete)


def test_the_sums_follow_the_ratings_and_one_rating_cannot_win() -> None:
    plugin, much_rated = a_listed_plugin(), a_listed_plugin()
    rater = somebody()
    PluginRating.objects.create(user_id=rater.id, plugin=plugin, stars=3)
    PluginRating.objects.filter(user_id=rater.id).update(stars=5)
    plugin.refresh_from_db()
    assert (plugin.stars, plugin.ratings, round(plugin.score, 2)) == (5, 1, 3.64)
    Plugin.objects.filter(pk=much_rated.pk).update(stars=4_500, ratings=1_000)
    much_rated.refresh_from_db()
    assert round(much_rated.score, 2) == 4.49
    PluginRating.objects.filter(user_id=rater.id).delete()
    plugin.refresh_from_db()
    assert (plugin.stars, plugin.ratings) == (0, 0)
