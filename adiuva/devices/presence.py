"""Who is connected, and where. A connection is (device, epoch); it lasts as long as its lease is renewed.

A process that is killed calls nothing, so a device is online only while somebody renews its lease. A newer
connection of the same device raises the epoch, and whatever an older one still says no longer counts.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass

from django.db import connection, transaction
from django.db.models.functions import Now

from adiuva.devices.models import Device
from adiuva.devices.protocol import DeviceHello

LEASE_S = 45
RENEW_S = 15


@dataclass(frozen=True, slots=True)
class Target:
    """A connection that frames can be sent to."""

    pk: uuid.UUID
    device_id: str
    epoch: int
    channel: str
    protocol: int
    capabilities: frozenset[str]

    def can(self, capability: str) -> bool:
        return capability in self.capabilities


@dataclass(frozen=True, slots=True)
class OpenedConnection:
    pk: uuid.UUID
    epoch: int
    superseded: str | None  # the channel of the connection this one replaces


_ARRIVE = """
WITH before AS (
    SELECT channel FROM devices_device WHERE user_id = %(user)s AND device_id = %(device)s AND lease_until > now()
)
INSERT INTO devices_device AS known (id, user_id, device_id, name, platform, app_version, protocol, capabilities,
    session_id, epoch, channel, lease_until)
VALUES (%(id)s, %(user)s, %(device)s, %(name)s, %(platform)s, %(version)s, %(protocol)s, %(capabilities)s,
    %(session)s, 1, %(channel)s, now() + make_interval(secs => %(lease)s))
ON CONFLICT (user_id, device_id) DO UPDATE SET
    name = COALESCE(NULLIF(excluded.name, ''), known.name),
    platform = COALESCE(NULLIF(excluded.platform, ''), known.platform),
    app_version = COALESCE(NULLIF(excluded.app_version, ''), known.app_version),
    protocol = excluded.protocol, capabilities = excluded.capabilities, session_id = excluded.session_id,
    epoch = known.epoch + 1, channel = excluded.channel, lease_until = excluded.lease_until, last_seen = now()
RETURNING known.id, known.epoch, (SELECT channel FROM before)
"""

_RENEW = """
UPDATE devices_device AS known SET lease_until = now() + make_interval(secs => %s), last_seen = now()
FROM unnest(%s::uuid[], %s::bigint[]) AS mine (id, epoch)
WHERE known.id = mine.id AND known.epoch = mine.epoch
RETURNING known.id
"""

_FIND = """
SELECT id, device_id, epoch, channel, protocol, capabilities FROM devices_device
WHERE user_id = %(user)s AND lease_until > now() AND channel <> ALL(%(not_at)s::text[])
    AND (%(device)s::uuid IS NULL OR id = %(device)s)
ORDER BY last_seen DESC LIMIT 1
"""


def open_connection(
    *, user_id: uuid.UUID, session_id: uuid.UUID, hello: DeviceHello, channel: str
) -> OpenedConnection:
    """Enter a connection; the newest of a device wins. One statement, so that two cannot both think so."""
    with connection.cursor() as cursor:
        cursor.execute(
            _ARRIVE,
            {
                "id": uuid.uuid4(),
                "user": user_id,
                "device": hello.device_id,
                "name": hello.name or "",
                "platform": hello.platform or "",
                "version": hello.app_version or "",
                "protocol": min(hello.protocol, 2),
                # They are protocol 2's: what a client of protocol 1 puts there promises nothing.
                "capabilities": sorted({name[:50] for name in hello.capabilities if hello.protocol >= 2}),
                "session": session_id,
                "channel": channel,
                "lease": LEASE_S,
            },
        )
        pk, epoch, superseded = cursor.fetchone()
    return OpenedConnection(pk, epoch, superseded or None)


def renew_leases(mine: Collection[tuple[uuid.UUID, int]]) -> set[uuid.UUID]:
    """Renew the leases of a process's connections in one statement; returns those that are still the newest."""
    with connection.cursor() as cursor:
        cursor.execute(_RENEW, [LEASE_S, [pk for pk, _ in mine], [epoch for _, epoch in mine]])
        return {row[0] for row in cursor.fetchall()}


def close_connection(*, pk: uuid.UUID, epoch: int) -> None:
    """End a connection. A late word of an older epoch changes nothing."""
    Device.objects.filter(pk=pk, epoch=epoch).update(lease_until=None, channel="", last_seen=Now())


def find(*, user_id: uuid.UUID, pk: uuid.UUID | None = None, not_at: Collection[str] = ()) -> Target | None:
    """Where a user's device can be reached now; without `pk`, the one seen last. None: nothing is connected.

    `not_at` are channels on which nobody listened: of a process that was killed, whose leases have not ended yet.
    """
    with connection.cursor() as cursor:
        cursor.execute(_FIND, {"user": user_id, "device": pk, "not_at": list(not_at)})
        row = cursor.fetchone()
    if row is None:
        return None
    key, device_id, epoch, channel, protocol, capabilities = row
    return Target(key, device_id, epoch, channel, protocol, frozenset(capabilities))


def channels_with(*, user_id: uuid.UUID, capability: str) -> list[tuple[uuid.UUID, str]]:
    """The user's connections that can do something: the device's row id and the channel."""
    found = Device.objects.of(user_id).online().filter(capabilities__contains=[capability])
    return list(found.values_list("pk", "channel"))


@transaction.atomic
def forget_device(device: Device) -> str:
    """Drop a device's row; returns the channel on which its connection, if any, can be told."""
    locked = Device.objects.select_for_update().get(pk=device.pk)
    channel = locked.channel
    locked.delete()
    return channel
