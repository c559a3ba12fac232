"""The cost of frequent database operations, compared with the plain way to do them.

`python -m bench.database_costs [SOCKETS]`. CPU is of the thread that asks and of its PostgreSQL process together. Both
ways take turns in the same run.
"""

from __future__ import annotations

import datetime as dt
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from bench.harness import bench_servers, record

ROUNDS: Final = 5
SOCKETS: Final = 5_000
SESSIONS_A_SOCKET: Final = 8
IDLE_DEVICES: Final = 10_000
RENEWALS: Final = 12


def cpu_ms(work: Callable[[], Any], times: int) -> float:
    """Milliseconds of CPU for each call."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid = cursor.fetchone()[0]
    before, started = _cpu_s(pid), time.thread_time()
    for _ in range(times):
        work()
    return (time.thread_time() - started + _cpu_s(pid) - before) * 1_000 / times


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def by_turns(what: str, ours: Callable[[], Any], theirs: Callable[[], Any], times: tuple[int, int]) -> None:
    """Compare the CPU of two ways; `times`: how often each is called in a round."""
    cpu_ms(ours, times[0]), cpu_ms(theirs, times[1])
    found = [(cpu_ms(ours, times[0]), cpu_ms(theirs, times[1])) for _ in range(ROUNDS)]
    mine, other = [one for one, _ in found], [one for _, one in found]
    record(f"CPU of {what}", mine, "ms", beside=other, name="the plain way")


def sessions(sockets: int) -> None:
    from django.utils import timezone

    from adiuva.accounts import services, session_check
    from adiuva.accounts.models import Session, User

    token = services.register(email=f"{uuid4().hex}@example.com", password="correct horse").access_token
    key = services.authenticate(access_token=token)
    by_turns(
        "a session's check",
        lambda: session_check.find_live(session_id=key.pk, user_id=key.user_id),
        lambda: Session.objects.live().select_related("user").filter(pk=key.pk, user_id=key.user_id).first(),
        (1_000, 300),
    )
    many = sockets * SESSIONS_A_SOCKET
    people = User.objects.bulk_create(
        [User(email=f"{uuid4().hex}@example.com", password="!") for _ in range(many // 2)],
        batch_size=2_000,
    )
    end = timezone.now() + dt.timedelta(days=30)
    made = Session.objects.bulk_create(
        [Session(user=user, expires_at=end) for user in people for _ in range(2)], batch_size=2_000
    )
    connected = {session.pk for session in random.sample(made, sockets)}
    share = set(list(connected)[: sockets // 20])
    since, _ = session_check.recheck(connected=connected, share=share, since=None)
    by_turns(
        f"finding whose session ended, of {sockets:,} sockets",
        lambda: session_check.recheck(connected=connected, share=share, since=since),
        lambda: dict(Session.objects.live().filter(pk__in=connected).values_list("pk", "user__tier")),
        (100, 5),
    )


def renewals(sockets: int) -> None:
    """Beside a table whose rows each hold a lease of their own."""
    from django.db import connection

    from adiuva.accounts.models import User
    from adiuva.devices import presence
    from adiuva.devices.models import Device

    process = uuid4()
    people = list(User.objects.values_list("pk", flat=True)[:sockets])
    made = Device.objects.bulk_create(
        [
            Device(
                user_id=person,
                device_id=uuid4().hex,
                name_sealed=random.randbytes(60),
                channel=uuid4().hex,
                process_id=process,
            )
            for person in people
        ]
    )
    mine = [(device.pk, 1) for device in made]
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE plain (LIKE devices_device INCLUDING ALL)")
        cursor.execute("ALTER TABLE plain ADD lease_until timestamptz, SET (fillfactor = 50)")
        cursor.execute("INSERT INTO plain SELECT * FROM devices_device")
        cursor.execute("VACUUM ANALYZE plain")
        cursor.execute("VACUUM ANALYZE devices_device")

    def plain() -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE plain AS known SET lease_until = now() + interval '45 s'"
                " FROM unnest(%s::uuid[], %s::bigint[]) AS mine (id, epoch)"
                " WHERE known.id = mine.id AND known.epoch = mine.epoch RETURNING known.id",
                [[pk for pk, _ in mine], [epoch for _, epoch in mine]],
            )
            {row[0] for row in cursor.fetchall()}

    def ours() -> None:
        presence.renew(process, mine)
        presence.forget_processes()

    by_turns(f"the lease of {sockets:,} devices", ours, plain, (RENEWALS, RENEWALS))
    one, each = wal_bytes(ours), wal_bytes(plain)
    record(f"WAL of a renewal for {sockets:,} devices", one, "bytes", beside=each, name="a lease a device")
    # A process holds many more than 5,000; and one more process is one more such row.
    a_day = one * IDLE_DEVICES / sockets * 86_400 / presence.RENEW_S / 1e9
    record(f"WAL of {IDLE_DEVICES:,} idle devices, by that", a_day, "GB a day", most=0.5)


def wal_bytes(renew: Callable[[], Any]) -> float:
    """Bytes of WAL of a renewal, over some of them, with a checkpoint before and vacuum as in the long run."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("CHECKPOINT")
        cursor.execute("SELECT pg_current_wal_insert_lsn()")
        before = cursor.fetchone()[0]
        for number in range(RENEWALS):
            renew()
            if number % 4 == 3:
                cursor.execute("VACUUM devices_device, devices_process, plain")
        cursor.execute("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", [before])
        return float(cursor.fetchone()[0]) / RENEWALS


def main(sockets: int = SOCKETS) -> None:
    with bench_servers():
        sessions(sockets)
        renewals(sockets)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
