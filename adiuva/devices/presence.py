"""Presence: which devices are connected, and on which channel. A connection is a device and its epoch.

A killed process never reports a disconnect, so a device counts as online only while the process that holds its
connection renews its lease: one row, however many devices it holds, so that an idle device costs no write. A newer
connection of the same device raises the epoch, and updates of an older connection are ignored.

This lease is not one of core.leases: nobody claims a process, and a newer connection of a device always wins. If the
process was only slow, its next renewal brings all of its devices back.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from django.db import connection, transaction
from django.db.models.functions import Now

from adiuva.accounts.keys import cipher_for
from adiuva.accounts.validators import timezones
from adiuva.core.db import prepared_cursor
from adiuva.devices.models import LEASE, Device
from adiuva.devices.protocol import DeviceHello

# The time between two renewals of a process's lease.
RENEW_S: Final = 15
# The row of a process is kept this long after its lease, so that devices which come back soon are written once.
_KEEP_LOST_S: Final = 600


@dataclass(frozen=True, slots=True)
class Target:
    """Current connection of a device, to which frames can be sent."""

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
    superseded: str | None  # channel of the connection that this one replaces
    capabilities: frozenset[str]


# Writes the process's row only if it is missing, or was not renewed because the process held no device.
_ARRIVE = """
WITH holder AS (
    INSERT INTO devices_process (id, lease_until)
    SELECT %(process)s::uuid, now() + make_interval(secs => %(lease)s::float8)
    WHERE NOT EXISTS (
        SELECT FROM devices_process
        WHERE id = %(process)s::uuid AND lease_until > now() + make_interval(secs => %(renew)s::float8)
    )
    ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until
),
before AS (
    SELECT device.channel FROM devices_device AS device JOIN devices_process AS process ON process.id = process_id
    WHERE user_id = %(user)s AND device_id = %(device)s AND lease_until > now()
)
INSERT INTO devices_device AS known (id, user_id, device_id, name_sealed, grants_sealed, platform, app_version,
    timezone, protocol, capabilities, session_id, epoch, channel, process_id)
VALUES (%(id)s, %(user)s, %(device)s, %(name)s, %(grants)s, %(platform)s, %(version)s, %(timezone)s, %(protocol)s,
    %(capabilities)s, %(session)s, 1, %(channel)s, %(process)s::uuid)
ON CONFLICT (user_id, device_id) DO UPDATE SET
    name_sealed = COALESCE(excluded.name_sealed, known.name_sealed), grants_sealed = excluded.grants_sealed,
    platform = COALESCE(NULLIF(excluded.platform, ''), known.platform),
    app_version = COALESCE(NULLIF(excluded.app_version, ''), known.app_version),
    timezone = COALESCE(NULLIF(excluded.timezone, ''), known.timezone),
    protocol = excluded.protocol, capabilities = excluded.capabilities, session_id = excluded.session_id,
    epoch = known.epoch + 1, channel = excluded.channel, process_id = excluded.process_id, last_seen = now()
RETURNING known.id, known.epoch, (SELECT channel FROM before)
"""

_RENEW = """
WITH renewed AS (
    INSERT INTO devices_process (id, lease_until) VALUES (%s::uuid, now() + make_interval(secs => %s::float8))
    ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until
)
SELECT mine.id FROM unnest(%s::uuid[], %s::bigint[]) AS mine (id, epoch)
LEFT JOIN devices_device AS known ON known.id = mine.id AND known.epoch = mine.epoch WHERE known.id IS NULL
"""

# The devices still name their process: a device is online again as soon as that row is back.
_FORGET = """
WITH gone AS (
    DELETE FROM devices_process WHERE id IN (
        SELECT id FROM devices_process
        WHERE id = %s::uuid OR lease_until < now() - make_interval(secs => %s::float8) FOR UPDATE SKIP LOCKED
    )
    RETURNING id, least(now(), lease_until - make_interval(secs => %s::float8)) AS seen_at
)
UPDATE devices_device AS device SET last_seen = seen_at FROM gone
WHERE device.process_id = gone.id AND last_seen < seen_at
"""

_FIND = """
SELECT device.id, device_id, epoch, channel, protocol, capabilities
FROM devices_device AS device JOIN devices_process AS process ON process.id = device.process_id
WHERE user_id = %(user)s AND lease_until > now() AND channel <> ALL(%(not_at)s::text[])
    AND (%(device)s::uuid IS NULL OR device.id = %(device)s)
ORDER BY last_seen DESC LIMIT 1
"""

CHANNELS_SQL = """
SELECT device.id, channel
FROM devices_device AS device JOIN devices_process AS process ON process.id = device.process_id
WHERE user_id = %s AND lease_until > now() AND capabilities @> ARRAY[%s]::varchar[]
"""


def has_unknown_zone(hello: DeviceHello) -> bool:
    """Return whether a hello names a time zone that the IANA database does not have. Then the known facts about the
    device stay."""
    return hello.timezone is not None and hello.timezone not in timezones()


def open_connection(
    *, process: uuid.UUID, user_id: uuid.UUID, session_id: uuid.UUID, hello: DeviceHello, channel: str
) -> OpenedConnection:
    """Record a connection as its device's newest, in one statement, so that of two connections only one is.

    From then on, `process` has to renew its lease.
    """
    cipher = cipher_for(user_id) if hello.name or hello.grants is not None else None
    name_sealed = (
        Device.name_sealed.seal(cipher, hello.name, hello.device_id) if cipher and hello.name else None
    )
    grants_sealed = (
        Device.grants_sealed.seal(cipher, hello.grants, hello.device_id)
        if cipher and hello.grants is not None and hello.protocol >= 2
        else None
    )
    # Capabilities belong to protocol 2; those of a protocol 1 client are ignored.
    capabilities = frozenset(name[:50] for name in hello.capabilities if hello.protocol >= 2)
    with prepared_cursor() as cursor:
        cursor.execute(
            _ARRIVE,
            {
                "id": uuid.uuid4(),
                "user": user_id,
                "device": hello.device_id,
                "name": name_sealed,
                "grants": grants_sealed,
                "platform": hello.platform or "",
                "version": hello.app_version or "",
                "timezone": "" if has_unknown_zone(hello) or hello.protocol < 2 else hello.timezone or "",
                "protocol": min(hello.protocol, 2),
                "capabilities": sorted(capabilities),
                "session": session_id,
                "channel": channel,
                "process": process,
                "lease": LEASE.total_seconds(),
                "renew": LEASE.total_seconds() - 2 * RENEW_S,
            },
        )
        pk, epoch, superseded = cursor.fetchone()
    return OpenedConnection(pk, epoch, superseded or None, capabilities)


def renew(process: uuid.UUID, mine: Collection[tuple[uuid.UUID, int]]) -> set[uuid.UUID]:
    """Renew the lease of a process, in one statement that writes one row. Returns the devices of those connections
    (device and epoch) that are no longer the newest."""
    with prepared_cursor() as cursor:
        cursor.execute(
            _RENEW, [process, LEASE.total_seconds(), [pk for pk, _ in mine], [epoch for _, epoch in mine]]
        )
        return {row[0] for row in cursor.fetchall()}


def forget_processes(ended: uuid.UUID | None = None) -> None:
    """Delete the row of a process that ends, which takes all of its devices offline at once, and the rows of lost
    processes. The time when their devices were last seen is kept."""
    with connection.cursor() as cursor:
        cursor.execute(_FORGET, [ended, _KEEP_LOST_S, LEASE.total_seconds()])


def close_connection(*, pk: uuid.UUID, epoch: int) -> None:
    """Record that a connection has ended. Does nothing if the device has a newer one."""
    Device.objects.filter(pk=pk, epoch=epoch).update(process=None, channel="", last_seen=Now())


def find(*, user_id: uuid.UUID, pk: uuid.UUID | None = None, not_at: Collection[str] = ()) -> Target | None:
    """Return the connection of a user's device, or, without `pk`, of the one that came last; None if not connected.

    `not_at` are channels to ignore because nobody listens there: their process was killed and the lease still runs.
    """
    with prepared_cursor() as cursor:
        cursor.execute(_FIND, {"user": user_id, "device": pk, "not_at": list(not_at)})
        row = cursor.fetchone()
    if row is None:
        return None
    key, device_id, epoch, channel, protocol, capabilities = row
    return Target(key, device_id, epoch, channel, protocol, frozenset(capabilities))


def channels_with(*, user_id: uuid.UUID, capability: str) -> list[tuple[uuid.UUID, str]]:
    """Return the user's connected devices with a capability: row id and channel of each."""
    with prepared_cursor() as cursor:
        cursor.execute(CHANNELS_SQL, [user_id, capability])
        return list(cursor.fetchall())


@transaction.atomic
def forget_device(device: Device) -> str:
    """Delete a device's row; return the channel of its connection, or "" if it has none."""
    locked = Device.objects.select_for_update().get(pk=device.pk)
    channel = locked.channel
    locked.delete()
    return channel
