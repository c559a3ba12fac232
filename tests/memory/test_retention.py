"""Retention of the memory: what expires, and what does not."""

from __future__ import annotations

import uuid

import pytest
from django.db.models.functions import Now
from django.test import override_settings

from memory import entries, retention
from memory.entries import BY_HAND
from memory.models import Entry, EntrySource, Memory, Receipt, Tier
from tests.factories import somebody
from tests.memory.factories import days_pass, place, said, says, seen

pytestmark = pytest.mark.django_db(transaction=False)


@pytest.fixture
def user() -> uuid.UUID:
    return somebody().id


def left(user: uuid.UUID) -> set[str]:
    return {says(entry) for entry in Entry.objects.of(user)}


@pytest.mark.parametrize(
    ("then", "days", "stays"),
    [
        ("nothing", 179, True),
        ("nothing", 181, False),
        ("used", 364, True),
        ("used", 366, False),
        ("said again", 366, True),
        ("by hand", 1000, True),
    ],
)
def test_entries_that_were_never_used_expire(user: uuid.UUID, then: str, days: int, stays: bool) -> None:
    entry = seen(user, "Anna moves to Turin", "here")
    if then == "used":
        Entry.objects.filter(pk=entry.pk).update(uses=1, used_at=Now())
    if then == "by hand":
        entries.remember(user_id=user, tier=Tier.ASSOCIATIVE, content="Anna moves to Turin", source=BY_HAND)
    days_pass(user, days)
    if then == "said again":
        seen(user, "Anna moves to Turin", "there")
    other = seen(user, "what is new", "here")
    assert retention.delete_expired_entries(user) == (0 if stays else 1)
    assert retention.delete_expired_entries(user) == 0
    assert left(user) == {"what is new"} | ({"Anna moves to Turin"} if stays else set())
    assert EntrySource.objects.filter(entry__user_id=user).exclude(entry=other).exists() is stays


def test_only_associative_entries_expire(user: uuid.UUID) -> None:
    entries.remember(user_id=user, tier=Tier.CORE, key="drink", content="tea", source=said("here"))
    entries.remember(user_id=user, tier=Tier.EPISODIC, content="we spoke", source=said("here"))
    days_pass(user, 3000)
    assert retention.delete_expired_entries(user) == 0
    assert left(user) == {"tea", "we spoke"}


def test_entries_about_an_old_date_do_not_expire_early(user: uuid.UUID) -> None:
    days_pass(user, 0)
    old = seen(user, "from a mail of long ago", "there")
    EntrySource.objects.filter(entry=old).update(at="2020-01-01T00:00Z")
    Entry.objects.filter(pk=old.pk).update(valid_from="2020-01-01T00:00Z")
    assert retention.delete_expired_entries(user) == 0


def test_history_expires_after_a_year_and_current_entries_stay(user: uuid.UUID) -> None:
    for drink in ("coffee", "tea", "water"):
        entries.remember(user_id=user, tier=Tier.CORE, key="drink", content=drink, source=said(drink))
        days_pass(user, 200)
    gone = seen(user, "moved away", "here")
    entries.end_validity(user_id=user, ids=[gone.pk])
    assert retention.delete_expired_entries(user) == 1  # coffee, until 400 days ago
    assert left(user) == {"tea", "water", "moved away"}
    days_pass(user, 366)
    assert retention.delete_expired_entries(user) == 2
    assert left(user) == {"water"}


def test_expiry_deletes_in_batches_and_only_of_its_user(
    user: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_BATCH", 2)
    other = somebody().id
    for number in range(5):
        seen(user, f"thing {number}", "here")
        seen(other, f"thing {number}", "here")
    days_pass(user, 200)
    days_pass(other, 200)
    assert retention.delete_expired_entries(user) == 5
    assert len(left(other)) == 5


def test_nothing_expires_while_the_memory_is_off(user: uuid.UUID) -> None:
    seen(user, "thing", "here")
    days_pass(user, 200)
    Memory.objects.filter(pk=user).update(enabled=False)
    assert retention.delete_expired_entries(user) == 0


def test_the_expiry_in_days_is_read_from_settings(user: uuid.UUID) -> None:
    from django.conf import settings

    seen(user, "thing", "here")
    days_pass(user, 8)
    with override_settings(MEMORY={**settings.MEMORY, "forget_unused_after_days": 7}):
        assert retention.delete_expired_entries(user) == 1


def test_old_receipts_are_deleted(user: uuid.UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_BATCH", 2)
    fields = {"user_id": user, "provider": "openai", "model": "m", "entries": [place("entry")]}
    for _ in range(5):
        Receipt.objects.create(purpose=Receipt.Purpose.TURN, **fields)
    days_pass(user, 91)
    new = Receipt.objects.create(purpose=Receipt.Purpose.TURN, **fields)
    assert retention.delete_expired_receipts() == 5
    assert Receipt.objects.get(user_id=user) == new
