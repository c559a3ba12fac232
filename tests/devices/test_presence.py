"""Presence of devices: epochs and leases, on a real database with real races."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from adiuva.core import db
from adiuva.devices import connections, presence
from adiuva.devices.models import LEASE, Device, Process
from adiuva.devices.presence import OpenedConnection
from adiuva.devices.protocol import DeviceHello
from adiuva.devices.serializers import DeviceSerializer
from tests.devices.link_endpoints import Local
from tests.factories import Person, somebody


@pytest.fixture
def user_id(committed_db: str) -> UUID:
    return somebody().id


# The process at which devices arrive, unless a test names another.
HERE = uuid4()


def arrive(
    user_id: UUID, device_id: str = "laptop", *, at: UUID = HERE, **fields: object
) -> OpenedConnection:
    hello = DeviceHello.model_validate({"device_id": device_id, **fields})
    return presence.open_connection(
        process=at, user_id=user_id, session_id=uuid4(), hello=hello, channel=uuid4().hex
    )


def silent(process: UUID, seconds: float) -> None:
    """Have the lease of a process be over for some time."""
    until = timezone.now() - timedelta(seconds=seconds)
    assert Process.objects.filter(pk=process).update(lease_until=until) == 1


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
        superseded = presence.renew(HERE, [(arrival.pk, arrival.epoch)])
        assert superseded == (set() if arrival is newest else {newest.pk})
    target = presence.find(user_id=user_id)
    assert target is not None
    assert target.epoch == newest.epoch


def test_a_renewal_keeps_all_devices_of_a_process_online_whoevers_they_are(user_id: UUID) -> None:
    mine, other, elsewhere = (
        arrive(user_id),
        arrive(somebody().id),
        arrive(somebody().id, at=(there := uuid4())),
    )
    gone = uuid4()
    silent(HERE, 1), silent(there, 1)
    here = [(mine.pk, mine.epoch), (other.pk, other.epoch), (gone, 1)]
    assert presence.renew(HERE, here) == {gone}
    online = Device.objects.online().filter(pk__in=[mine.pk, other.pk, elsewhere.pk])
    assert set(online.values_list("pk", flat=True)) == {mine.pk, other.pk}


def test_a_renewal_writes_one_row_however_many_devices_there_are(user_id: UUID) -> None:
    process = uuid4()
    arrivals = [arrive(user_id, f"device {number}", at=process) for number in range(20)]
    mine = [(arrival.pk, arrival.epoch) for arrival in arrivals]
    with CaptureQueriesContext(connection) as queries:
        assert presence.renew(process, mine) == set()
    assert len(queries) == 1
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(DISTINCT xmin::text) FROM devices_device WHERE process_id = %s", [process]
        )
        assert cursor.fetchone() == (20,)  # each was written by its own arrival, and by nothing since


def test_arrivals_write_the_row_of_their_process_once_in_a_while(user_id: UUID) -> None:
    process = uuid4()
    arrive(user_id, at=process)
    lease = Process.objects.get(pk=process).lease_until
    arrive(user_id, at=process)
    assert Process.objects.get(pk=process).lease_until == lease
    silent(process, 100)  # it held no device for a while, and renewed nothing
    arrive(user_id, at=process)
    assert Process.objects.get(pk=process).lease_until > timezone.now()


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


def test_a_device_is_online_only_while_the_lease_of_its_process_runs(user_id: UUID) -> None:
    process = uuid4()
    arrival = arrive(user_id, at=process)
    devices = Device.objects.filter(pk=arrival.pk)
    assert devices.online().exists()
    silent(process, 0.001)
    assert presence.find(user_id=user_id) is None
    assert not devices.with_online().get().is_online  # type: ignore[attr-defined]
    assert arrive(user_id).superseded is None  # there is nobody left to be told
    assert devices.online().exists()


def test_a_device_of_a_killed_process_is_back_at_once_at_another(user_id: UUID) -> None:
    killed = uuid4()
    old = arrive(user_id, at=killed)
    new = arrive(user_id)
    found = presence.find(user_id=user_id)
    assert found is not None and (found.epoch, new.superseded is None) == (new.epoch, False)
    silent(killed, 1)
    assert presence.find(user_id=user_id) == found
    # And the process, which was only slow, learns that its connection is not the newest any more.
    assert presence.renew(killed, [(old.pk, old.epoch)]) == {old.pk}


@pytest.mark.parametrize("seconds", [1, 3000], ids=["soon", "after its row was deleted"])
def test_a_renewal_brings_back_what_a_slow_database_let_end(user_id: UUID, seconds: int) -> None:
    process = uuid4()
    arrival = arrive(user_id, at=process)
    silent(process, seconds)
    presence.forget_processes()
    assert Process.objects.filter(pk=process).exists() is (seconds == 1)
    assert presence.find(user_id=user_id, pk=arrival.pk) is None
    assert presence.renew(process, [(arrival.pk, arrival.epoch)]) == set()
    assert presence.find(user_id=user_id, pk=arrival.pk) is not None


def test_a_process_that_ends_takes_its_devices_with_it(user_id: UUID) -> None:
    ends, stays = uuid4(), uuid4()
    gone, here = arrive(user_id, "gone", at=ends), arrive(user_id, "here", at=stays)
    presence.forget_processes(ends)
    assert set(Device.objects.of(user_id).online().values_list("pk", flat=True)) == {here.pk}
    assert not Process.objects.filter(pk=ends).exists() and Process.objects.filter(pk=stays).exists()
    assert arrive(user_id, "gone").epoch == gone.epoch + 1


def test_when_the_devices_of_a_lost_process_were_seen_last_stays_known(user_id: UUID) -> None:
    process = uuid4()
    arrival = arrive(user_id, at=process)
    device = Device.objects.filter(pk=arrival.pk)
    device.update(last_seen=timezone.now() - timedelta(days=3))
    silent(process, 3000)
    lease = Process.objects.get(pk=process).lease_until
    for _ in range(2):
        assert device.with_online().get().seen_at == lease - LEASE  # type: ignore[attr-defined]
        presence.forget_processes()
    assert device.get().last_seen == lease - LEASE


def test_devices_are_listed_by_when_they_were_seen_last(user_id: UUID) -> None:
    left, first, second = arrive(user_id, "left"), arrive(user_id, "first"), arrive(user_id, "second")
    now = timezone.now()
    Device.objects.filter(pk=first.pk).update(last_seen=now - timedelta(days=9))
    Device.objects.filter(pk=second.pk).update(last_seen=now - timedelta(days=8))
    presence.renew(HERE, [(first.pk, first.epoch), (second.pk, second.epoch)])
    presence.close_connection(pk=left.pk, epoch=left.epoch)
    listed: list[Any] = list(Device.objects.of(user_id).with_online().seen_last_first())
    assert [each.pk for each in listed] == [second.pk, first.pk, left.pk]
    assert [each.is_online for each in listed] == [True, True, False]
    assert all(each.seen_at >= now - timedelta(seconds=5) for each in listed)
    shown = [DeviceSerializer(each).data["last_seen"] for each in listed]
    assert shown == [each.seen_at.isoformat().replace("+00:00", "Z") for each in listed]


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
    assert presence.renew(HERE, [(arrival.pk, arrival.epoch)]) == {arrival.pk}


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


def away(*, pk: UUID, epoch: int) -> None:
    raise OperationalError("the database is away")


async def test_a_device_that_left_while_the_database_was_away_is_offline_after_the_next_renewal(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    def online() -> set[str]:
        return set(Device.objects.of(person.id).online().values_list("device_id", flat=True))

    async with Local("http://local", person.access_token) as stays:
        await stays.hello(device_id="stays")
        async with Local("http://local", person.access_token) as leaves:
            await leaves.hello(device_id="leaves")
            with monkeypatch.context() as patched:
                patched.setattr(presence, "close_connection", away)
                await leaves.drop()
        assert await db.run(online) == {"stays", "leaves"}
        await connections.current()._renew_lease()
        assert await db.run(online) == {"stays"}
