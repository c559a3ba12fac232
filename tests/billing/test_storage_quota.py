"""Room for what users store: reserved before it comes, exact when all come at once."""

from __future__ import annotations

import datetime as dt
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from adiuva.accounts.models import User
from billing import entitlements, plans, storage_quota
from billing.entitlements import NotInPlan, QuotaExceeded
from billing.models import StorageReservation, StoredAmount
from tests.factories import somebody

HOUR = dt.timedelta(hours=1)
GB = 10**9


@pytest.fixture(autouse=True)
def plans_on(settings: Any) -> None:
    settings.PLANS = True
    plans.forget()


def reserve(user_id: uuid.UUID, n: int) -> uuid.UUID:
    return storage_quota.reserve(user_id, "storage_bytes", n, lifetime=HOUR)


def amounts(user_id: uuid.UUID) -> tuple[int, int]:
    return StoredAmount.objects.values_list("used", "reserved").get(user_id=user_id, kind="storage_bytes")


@pytest.mark.django_db
def test_room_is_reserved_kept_and_given_back() -> None:
    mara = somebody(tier="pro").id
    first, second = reserve(mara, 3 * GB), reserve(mara, 2 * GB)
    with pytest.raises(QuotaExceeded) as refused:
        reserve(mara, 1)
    assert refused.value.extra["upgrade_to"] == "power" and refused.value.extra["used"] == 5 * GB
    assert storage_quota.keep(first, 2 * GB)
    storage_quota.release(second)
    assert amounts(mara) == (2 * GB, 0)
    assert not storage_quota.keep(first, 2 * GB)  # counted once
    third = reserve(mara, 3 * GB)
    assert storage_quota.keep(third, GB, instead_of=2 * GB)
    assert amounts(mara) == (GB, 0)
    with pytest.raises(ValueError, match="more is stored"):
        storage_quota.keep(reserve(mara, 1), 2)
    assert entitlements.usage_of(mara)["storage_bytes"] == GB


@pytest.mark.django_db
def test_a_smaller_plan_refuses_what_is_new_and_takes_what_is_given_back() -> None:
    mara = somebody(tier="pro").id
    storage_quota.keep(reserve(mara, 4 * GB), 4 * GB)
    User.objects.filter(pk=mara).update(tier="free")
    with pytest.raises(QuotaExceeded):
        reserve(mara, 1)
    storage_quota.add(mara, "storage_bytes", 0)  # in place of as much
    with pytest.raises(QuotaExceeded):
        storage_quota.add(mara, "storage_bytes", 1)
    assert entitlements.over("free", entitlements.usage_of(mara)) == ["storage_bytes"]
    storage_quota.give_back(mara, "storage_bytes", 4 * GB)
    assert amounts(mara) == (0, 0)
    with pytest.raises(NotInPlan):
        storage_quota.add(mara, "storage_bytes", 0)  # there is nothing whose place it could take


@pytest.mark.django_db
def test_a_forgotten_reservation_is_given_back_and_cannot_be_kept() -> None:
    mara = somebody(tier="pro").id
    lost, alive = reserve(mara, GB), reserve(mara, GB)
    past = timezone.now() - HOUR
    StorageReservation.objects.filter(pk=lost).update(expires_at=past)
    storage_quota.expire()
    assert amounts(mara) == (0, GB)
    assert not storage_quota.keep(lost, GB) and storage_quota.keep(alive, GB)


def test_what_comes_at_once_is_granted_exactly_what_fits(committed_db: str) -> None:
    users = [somebody(tier="pro").id for _ in range(2)]

    def one(user_id: uuid.UUID) -> bool:
        try:
            reserve(user_id, GB)
        except QuotaExceeded:
            return False
        finally:
            connection.close()
        return True

    with ThreadPoolExecutor(8) as threads:
        granted = list(threads.map(one, users * 8))
    assert sum(granted) == 10
    assert [amounts(user) for user in users] == [(0, 5 * GB)] * 2
    User.objects.filter(pk__in=users).delete()
