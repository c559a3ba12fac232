"""Who is connected, and where: epochs and leases, on a real database with real races."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django.utils import timezone

from adiuva.devices import presence
from adiuva.devices.models import Device
from adiuva.devices.presence import OpenedConnection
from adiuva.devices.protocol import DeviceHello
from tests.factories import somebody


@pytest.fixture
def user_id(committed_db: str) -> UUID:
    return somebody().id


def arrive(user_id: UUID, device_id: str = "laptop", **fields: object) -> OpenedConnection:
    hello = DeviceHello.model_validate({"device_id": device_id, **fields})
    return presence.open_connection(user_id=user_id, session_id=uuid4(), hello=hello, channel=uuid4().hex)


def at_once(count: int, work: Callable[[], OpenedConnection]) -> list[OpenedConnection]:
    """Calls that begin together, each on a connection of its own."""
    barrier = Barrier(count)

    def one() -> OpenedConnection:
        try:
            connection.ensure_connection()
            barrier.wait(timeout=60)
            return work()
        finally:
            connection.close()

    with ThreadPoolExecutor(count) as threads:
        return [future.result() for future in [threads.submit(one) for _ in range(count)]]


@pytest.mark.parametrize("known", [False, True], ids=["new device", "known device"])
def test_racing_arrivals_of_a_device_get_an_epoch_each_and_one_row(user_id: UUID, known: bool) -> None:
    if known:
        arrive(user_id)
    arrivals = at_once(8, lambda: arrive(user_id))
    first = 2 if known else 1
    assert sorted(arrival.epoch for arrival in arrivals) == list(range(first, first + 8))
    assert len({arrival.pk for arrival in arrivals}) == 1
    assert Device.objects.of(user_id).count() == 1


def test_of_racing_connections_only_the_newest_is_renewed(user_id: UUID) -> None:
    arrivals = at_once(8, lambda: arrive(user_id))
    newest = max(arrivals, key=lambda arrival: arrival.epoch)
    for arrival in arrivals:
        renewed = presence.renew_leases([(arrival.pk, arrival.epoch)])
        assert renewed == ({newest.pk} if arrival is newest else set())
    target = presence.find(user_id=user_id)
    assert target is not None
    assert target.epoch == newest.epoch


def test_connections_are_renewed_together_whoevers_they_are(user_id: UUID) -> None:
    mine, other = arrive(user_id), arrive(somebody().id)
    assert presence.renew_leases([(mine.pk, mine.epoch), (other.pk, other.epoch), (uuid4(), 1)]) == {
        mine.pk,
        other.pk,
    }
    assert presence.renew_leases([]) == set()


def test_an_arrival_names_the_connection_that_it_replaces(user_id: UUID) -> None:
    assert arrive(user_id).superseded is None
    target = presence.find(user_id=user_id)
    assert target is not None
    assert arrive(user_id).superseded == target.channel
    assert arrive(user_id, "another device").superseded is None


def test_a_late_farewell_changes_nothing(user_id: UUID) -> None:
    old, new = arrive(user_id), arrive(user_id)
    presence.close_connection(pk=old.pk, epoch=old.epoch)
    found = presence.find(user_id=user_id)
    assert found is not None
    assert found.epoch == new.epoch
    presence.close_connection(pk=new.pk, epoch=new.epoch)
    assert presence.find(user_id=user_id) is None
    # The epoch goes on from where it was, or a very late word would count again.
    assert arrive(user_id).epoch == new.epoch + 1


def test_a_device_is_online_only_while_its_lease_runs(user_id: UUID) -> None:
    arrival = arrive(user_id)
    devices = Device.objects.filter(pk=arrival.pk)
    assert devices.online().exists()
    devices.update(lease_until=timezone.now() - timedelta(milliseconds=1))
    assert presence.find(user_id=user_id) is None
    assert not devices.with_online().get().is_online  # type: ignore[attr-defined]
    assert arrive(user_id).superseded is None  # there is nobody left to be told
    assert devices.online().exists()


def test_a_renewal_brings_back_what_a_slow_database_let_end(user_id: UUID) -> None:
    arrival = arrive(user_id)
    Device.objects.filter(pk=arrival.pk).update(lease_until=timezone.now() - timedelta(seconds=1))
    assert presence.renew_leases([(arrival.pk, arrival.epoch)]) == {arrival.pk}
    assert presence.find(user_id=user_id, pk=arrival.pk) is not None


def test_the_device_seen_last_is_found_unless_nobody_listens_there(user_id: UUID) -> None:
    arrive(user_id, "laptop")
    arrive(user_id, "server")
    last = presence.find(user_id=user_id)
    assert last is not None
    assert last.device_id == "server"
    other = presence.find(user_id=user_id, not_at=[last.channel])
    assert other is not None
    assert other.device_id == "laptop"
    assert presence.find(user_id=user_id, not_at=[last.channel, other.channel]) is None


def test_a_hello_without_a_name_keeps_the_one_that_was_given(user_id: UUID) -> None:
    arrive(user_id, name="Laptop", platform="linux", protocol=2, capabilities=["dedupe"])
    arrive(user_id)
    device = Device.objects.of(user_id).get()
    assert (device.name, device.platform) == ("Laptop", "linux")
    assert (device.protocol, device.capabilities) == (1, [])  # but what it can is what it says now


def test_forgetting_a_device_names_the_channel_of_its_connection(user_id: UUID) -> None:
    arrival = arrive(user_id)
    target = presence.find(user_id=user_id)
    assert target is not None
    assert presence.forget_device(Device.objects.get(pk=arrival.pk)) == target.channel
    assert presence.renew_leases([(arrival.pk, arrival.epoch)]) == set()


def test_a_device_says_what_agents_may_read_on_it(user_id: UUID) -> None:
    arrive(user_id, protocol=2, grants=["/home/ada/notes"])
    device = Device.objects.get(user_id=user_id)
    assert device.grants == ["/home/ada/notes"]
    assert b"notes" not in bytes(device.grants_sealed)
    arrive(user_id, protocol=2, grants=[])
    assert Device.objects.get(user_id=user_id).grants == []
    arrive(user_id)  # an older program does not say
    assert Device.objects.get(user_id=user_id).grants is None


def test_capabilities_count_for_protocol_2_alone(user_id: UUID) -> None:
    arrive(user_id, capabilities=["dedupe", "batch"])
    old = presence.find(user_id=user_id)
    arrive(user_id, capabilities=["dedupe", "batch"], protocol=2)
    new = presence.find(user_id=user_id)
    assert old is not None and new is not None
    assert (old.capabilities, new.capabilities) == (frozenset(), frozenset({"dedupe", "batch"}))
