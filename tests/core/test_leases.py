"""Leases, on every model that has them: of two workers one wins, and the one that is late writes nothing."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, connections, transaction
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adiuva.core import leases
from adiuva.core.leases import Lease, Leased, LeaseLost
from tests.agents.factories import create_agent, create_run
from tests.billing.marketplace.factories import a_developer, a_plugin
from tests.factories import somebody
from tests.sampling import fewer

pytestmark = pytest.mark.usefixtures("committed_db")

MINUTE = dt.timedelta(minutes=1)
DAY = dt.timedelta(days=1)


def _turn_of(user_id: uuid.UUID) -> Any:
    return apps.get_model("chat.Turn").objects.create(user_id=user_id, request_id="r", kind="home")


def _plugin_version_of(user_id: uuid.UUID) -> dict[str, Any]:
    plugin = a_plugin(a_developer(user_id))
    return {
        "plugin": plugin,
        "version": "1.0.0",
        "manifest": {},
        "sha256": "0" * 64,
        "size": 1,
        "author": plugin.developer,
    }


# By a model's label, the fields of a row of this user. Each model with leases has its line here.
FIELDS: dict[str, Callable[[uuid.UUID], dict[str, Any]]] = {
    "accounts.Deletion": lambda user: {"user_id": user},
    "accounts.Mail": lambda user: {"user_id": user, "kind": "verify", "not_before": now() + DAY},
    "agents.Run": lambda user: {
        "user_id": user,
        "agent_ref": uuid.uuid4(),
        "agent_name_sealed": b"",
        "trigger": "manual",
    },
    "agents.Watch": lambda user: {
        "user_id": user,
        "run": create_run(create_agent(user)),
        "turn": uuid.uuid4(),
        "started": True,
        "asked": b"",
    },
    "billing.Dispute": lambda user: {"stripe_id": f"dp_{user}"},
    "billing.Developer": lambda user: {"user_id": user, "handle": f"dev-{user}", "name": "d"},
    "billing.StripeJob": lambda user: {"kind": "customer", "subject": str(user), "user_id": user},
    "billing.PluginPurchase": lambda user: {
        "user_id": user,
        "plugin": (plugin := a_plugin(a_developer(user))),
        "developer": plugin.developer,
        "total_cents": 1000,
    },
    "billing.PluginVersion": _plugin_version_of,
    "billing.Subscription": lambda user: {"stripe_id": f"sub_{user}", "user_id": user},
    "chat.Turn": lambda user: {"user_id": user, "request_id": "r", "kind": "home"},
    "chat.TurnChanges": lambda user: {"turn": _turn_of(user), "sealed": b""},
    "export.Export": lambda user: {"user_id": user},
    "memory.Exchange": lambda user: {
        "user_id": user,
        "kind": "request",
        "source_id": uuid.uuid4(),
        "sealed": b"",
    },
    "memory.Memory": lambda user: {"user_id": user},
    "vault.Upload": lambda user: {
        "user_id": user,
        "purpose": "storage",
        "length": 1,
        "reservation": uuid.uuid4(),
        "expires_at": now() + DAY,
    },
}


def leased_models() -> list[type[Leased]]:
    return [model for model in apps.get_models() if issubclass(model, Leased)]


def labels() -> list[str]:
    return [model._meta.label for model in leased_models()]


@pytest.fixture(params=FIELDS)
def row(request: pytest.FixtureRequest) -> Leased:
    model = apps.get_model(request.param)
    assert issubclass(model, Leased)
    created: Leased = model._default_manager.create(**FIELDS[request.param](somebody().id))
    return created


def only(row: Leased) -> Any:
    return type(row)._default_manager.filter(pk=row.pk)


def claimed(row: Leased) -> Lease[Leased] | None:
    found = leases.claim(only(row), MINUTE)
    return found[0].lease(MINUTE) if found else None


def lapse(row: Leased) -> None:
    only(row).filter(lease_until__isnull=False).update(lease_until=Now() - MINUTE)


def test_each_model_with_leases_is_tested() -> None:
    assert set(labels()) <= FIELDS.keys()


def test_only_one_of_several_concurrent_claims_succeeds(row: Leased) -> None:
    workers = 6
    at_once = threading.Barrier(workers)

    def work(_: int) -> bool:
        try:
            at_once.wait()
            return claimed(row) is not None
        finally:
            connections.close_all()

    with ThreadPoolExecutor(workers) as pool:
        assert sum(pool.map(work, range(workers))) == 1


def test_a_worker_cannot_write_after_another_claimed_its_row(row: Leased) -> None:
    stale = claimed(row)
    assert stale is not None and claimed(row) is None
    lapse(row)
    current = claimed(row)
    assert current is not None
    before = only(row).get()
    for write in (stale.renew, stale.release, stale.held):
        with pytest.raises(LeaseLost), transaction.atomic():
            write()
    assert (only(row).get().lease_until, only(row).get().fence) == (before.lease_until, before.fence)
    with transaction.atomic():
        assert leases.held_among([stale, current]) == [before]
    current.renew()
    current.release()
    assert only(row).get().lease_until is None


@pytest.mark.parametrize("how", ["reclaim", "revoke", "revoke_lease"])
def test_a_worker_cannot_write_after_its_row_was_revoked(row: Leased, how: str) -> None:
    stale = claimed(row)
    assert stale is not None
    match how:
        case "reclaim":
            assert leases.reclaim(only(row)) == []  # its lease runs
            lapse(row)
            (lost,) = leases.reclaim(only(row))
            assert lost == row and leases.reclaim(only(row)) == []
        case "revoke":
            leases.revoke(only(row))
        case "revoke_lease":
            found = only(row).get()
            found.revoke_lease()
            found.save(update_fields=leases.LEASE_FIELDS)
    for write in (stale.renew, stale.release, stale.held):
        with pytest.raises(LeaseLost), transaction.atomic():
            write()
    assert claimed(row) is not None


def test_a_claim_skips_locked_rows(row: Leased) -> None:
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                only(row).select_for_update().get()
                locked.set()
                done.wait(30)
        finally:
            connections.close_all()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert locked.wait(30)
        assert claimed(row) is None
    finally:
        done.set()
        holder.join()
    assert claimed(row) is not None


def test_many_rows_are_claimed_and_released_together() -> None:
    model = apps.get_model("export.Export")
    rows = [model.objects.create(user_id=somebody().id) for _ in range(4)]
    among = model.objects.filter(pk__in=[row.pk for row in rows]).order_by("pk")
    first = leases.claim(among, MINUTE, most=3, size=7)
    assert [row.pk for row in first] == sorted(row.pk for row in rows)[:3]
    assert [row.size for row in first] == [7, 7, 7]
    assert [(row.lease_until, row.fence) for row in first] == [
        (row.lease_until, row.fence) for row in among.filter(size=7)
    ]
    assert all(row.lease_until == row.claimed_at + MINUTE for row in first)
    second = leases.claim(among, MINUTE, most=3)
    assert len(second) == 1
    held = [row.lease(MINUTE) for row in first]
    held[0].release()
    with transaction.atomic():
        still = leases.held_among(held)
        assert len(still) == 2
        leases.release_all(still, size=0)
    assert among.filter(lease_until=None).count() == 3 and among.filter(size=7).count() == 1


def test_all_rows_of_a_process_are_renewed_with_one_update_except_those_that_are_lost_or_locked() -> None:
    model = apps.get_model("export.Export")
    rows = [model.objects.create(user_id=somebody().id) for _ in range(5)]
    held = [lease for row in rows if (lease := claimed(row))]
    lapse(rows[0])
    held[0] = claimed(rows[0]) or held[0]  # its fence differs from the others'
    for row in rows:
        lapse(row)
    leases.reclaim(only(rows[1]))
    with ThreadPoolExecutor(1) as pool, transaction.atomic():
        only(rows[2]).select_for_update().get()
        assert pool.submit(renew_counted, held).result(30) == (3, 1)
    renewed = model.objects.filter(pk__in=[row.pk for row in rows], lease_until__gt=Now())
    assert set(renewed) == {rows[0], rows[3], rows[4]}
    assert leases.renew_all([]) == 0


def renew_counted(held: list[Lease[Leased]]) -> tuple[int, int]:
    """How many rows were renewed, and with how many statements."""
    try:
        with CaptureQueriesContext(connection) as queries:
            renewed = leases.renew_all(held)
        statements = [each["sql"] for each in queries if each["sql"] not in {"BEGIN", "COMMIT"}]
        return renewed, len(statements)
    finally:
        connections.close_all()


Step = tuple[str, int]
steps = st.lists(
    st.tuples(st.sampled_from(["claim", "renew", "release", "lapse", "reclaim"]), st.integers(0, 2)),
    max_size=12,
)


@settings(max_examples=fewer(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_only_the_newest_holder_of_a_lease_can_write(steps: list[Step]) -> None:
    row = apps.get_model("export.Export").objects.create(user_id=_owner())
    held: dict[int, Lease[Leased]] = {}
    holder: int | None = None
    runs = False
    for what, worker in steps:
        match what:
            case "claim":
                lease = claimed(row)
                assert (lease is not None) == (not runs)
                if lease is not None:
                    held[worker], holder, runs = lease, worker, True
            case "lapse":
                lapse(row)
                runs = False
            case "reclaim":
                assert bool(leases.reclaim(only(row))) == (holder is not None and not runs)
                holder = holder if runs else None
            case "renew" | "release" if worker in held:
                try:
                    getattr(held[worker], what)()
                    wrote = True
                except LeaseLost:
                    wrote = False
                assert wrote == (holder == worker)
                if wrote:
                    runs = what == "renew"
                    holder = worker if runs else None
    only(row).delete()


def _owner() -> uuid.UUID:
    return somebody().id
