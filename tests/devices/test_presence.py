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
from adiuva.devices.serializers import DeviceSerializer
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
        superseded = presence.renew_leases([(arrival.pk, arrival.epoch)])
        assert superseded == (set() if arrival is newest else {newest.pk})
    target = presence.find(user_id=user_id)
    assert target is not None
    assert target.epoch == newest.epoch


def test_connections_are_renewed_together_whoevers_they_are(user_id: UUID) -> None:
    mine, other = arrive(user_id), arrive(somebody().id)
    gone = uuid4()
    Device.objects.update(lease_until=timezone.now())
    assert presence.renew_leases([(mine.pk, mine.epoch), (other.pk, other.epoch), (gone, 1)]) == {gone}
    assert Device.objects.online().filter(pk__in=[mine.pk, other.pk]).count() == 2
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
    assert presence.renew_leases([(arrival.pk, arrival.epoch)]) == set()
    assert presence.find(user_id=user_id, pk=arrival.pk) is not None


def test_a_device_is_listed_by_when_it_was_seen_last_to_the_renewal(user_id: UUID) -> None:
    there, left = arrive(user_id, "there"), arrive(user_id, "left")
    now = timezone.now()
    Device.objects.filter(pk=there.pk).update(last_seen=now - timedelta(minutes=9))
    presence.renew_leases([(there.pk, there.epoch)])
    presence.close_connection(pk=left.pk, epoch=left.epoch)
    Device.objects.filter(pk=left.pk).update(last_seen=now - timedelta(minutes=1))
    first, second = Device.objects.of(user_id).with_online().seen_last_first()
    assert (first.pk, first.seen_at > now, first.last_seen < now) == (there.pk, True, True)
    assert (second.pk, second.seen_at) == (left.pk, now - timedelta(minutes=1))
    shown = [DeviceSerializer(each).data["last_seen"] for each in (first, second)]
    assert shown == [each.seen_at.isoformat().replace("+00:00", "Z") for each in (first, second)]


def test_what_lists_of_all_devices_go_by_is_renewed_every_ten_minutes(user_id: UUID) -> None:
    arrival = arrive(user_id)
    for minutes, written in [(9, False), (11, True)]:
        earlier = timezone.now() - timedelta(minutes=minutes)
        Device.objects.filter(pk=arrival.pk).update(last_seen=earlier)
        presence.renew_leases([(arrival.pk, arrival.epoch)])
        assert (Device.objects.get(pk=arrival.pk).last_seen != earlier) is written


def test_a_renewal_writes_no_column_of_an_index_and_finds_room_on_its_page(user_id: UUID) -> None:
    """So that it is a heap-only update."""
    arrival = arrive(user_id)
    before = Device.objects.values().get(pk=arrival.pk)
    presence.renew_leases([(arrival.pk, arrival.epoch)])
    after = Device.objects.values().get(pk=arrival.pk)
    assert {name for name in before if before[name] != after[name]} == {"lease_until"}
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'devices_device'")
        assert not [definition for (definition,) in cursor.fetchall() if "lease_until" in definition]
        cursor.execute("SELECT reloptions FROM pg_class WHERE relname = 'devices_device'")
        assert cursor.fetchone() == (["fillfactor=50"],)


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
    assert presence.renew_leases([(arrival.pk, arrival.epoch)]) == {arrival.pk}


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


def test_a_device_names_its_zone_and_keeps_it_when_it_names_none_or_an_unknown_one(user_id: UUID) -> None:
    for zone in ("Europe/Rome", None, "Europe/Nowhere", "../etc/passwd"):
        arrive(user_id, protocol=2, timezone=zone)
        assert Device.objects.get(user_id=user_id).timezone == "Europe/Rome"
