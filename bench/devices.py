"""5,000 devices connect, stay, and come back after their web process was killed: `python -m bench.devices [N]`

The devices are bare sockets in separate processes, each with a token and a hello of protocol 2. Memory is the web
process' resident memory with all devices connected, minus that without them.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Final
from uuid import uuid4

from adiuva.embedded.processes import Child
from bench.chat import lean_device
from bench.chat.lean_device import LeanDevice
from bench.harness import BenchServers, Stopwatch, bench_servers, cpu_s, listens, record, show

DEVICES: Final = 5_000
USERS: Final = 200  # few users with many devices: hashing a password costs more than a connection
PROCESSES: Final = 2
AT_ONCE: Final = 100  # connections that a process opens at the same time
WITHIN_S: Final = 300
MOST_S: Final = 12  # the aim, for all of them


def resident_bytes(child: Child) -> int:
    """Resident memory of a process, in bytes."""
    return int(Path(f"/proc/{child.pid}/statm").read_text().split()[1]) * resource.getpagesize()


def wal_position() -> int:
    """How many bytes PostgreSQL has written ahead since it exists."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        return int(cursor.fetchone()[0])


def settle() -> None:
    """Do now what PostgreSQL does once after many rows were written."""
    from django.db import connection

    time.sleep(5)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("CHECKPOINT")


def create_users(count: int) -> list[str]:
    """Create users; returns their access tokens."""
    from adiuva.accounts import services

    return [
        services.register(email=f"{uuid4().hex}@example.com", password="correct horse").access_token
        for _ in range(count)
    ]


class DeviceProcesses:
    """Processes that hold the devices. They read commands from standard input and report on standard output."""

    def __init__(self, base: str, tokens: list[str], devices: int) -> None:
        url = base.replace("http", "ws") + "/api/v1/ws/device"
        self._processes = []
        for number in range(PROCESSES):
            mine = list(range(number, devices, PROCESSES))
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.devices", "hold", url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdin is not None
            process.stdin.write(
                json.dumps([[f"device-{place}", tokens[place % len(tokens)]] for place in mine]) + "\n"
            )
            process.stdin.flush()
            self._processes.append(process)
        self._wait_for("ready")
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("connect\n")
            process.stdin.flush()

    def _wait_for(self, word: str) -> None:
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() != f"{word}\n":
                raise RuntimeError(f"a process of devices did not say {word}")

    def wait_until_connected(self) -> float:
        """Wait until the server has acknowledged all hellos; returns the seconds."""
        with Stopwatch() as watch:
            self._wait_for("connected")
        return watch.wall

    def end(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close(), process.stdout.close()


async def run_devices(url: str) -> None:
    """Connect all devices and report it; when all have lost their connection, start over."""
    devices: list[tuple[str, str]] = json.loads(await asyncio.to_thread(sys.stdin.readline))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    while True:
        gate = asyncio.Semaphore(AT_ONCE)
        connected = await asyncio.gather(*(connect(url, *device, gate) for device in devices))
        print("connected", flush=True)
        await asyncio.gather(*(device.ended for device in connected))


async def connect(url: str, device_id: str, token: str, gate: asyncio.Semaphore) -> LeanDevice:
    until = time.monotonic() + WITHIN_S
    while True:
        async with gate:
            try:
                async with asyncio.timeout(30):
                    return await lean_device.connect(url, token, device_id)
            except OSError:
                if time.monotonic() > until:
                    raise
        # As clients do, which find nobody while the server starts.
        await asyncio.sleep(random.uniform(0.5, 1.5))


def main(servers: BenchServers, devices: int) -> None:
    from adiuva.devices.models import Device

    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = files[1] - 500
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[1], files[1]))  # children have it, too
    if devices > most:
        print(f"  only {most:,} of {devices:,} devices: a process may have {files[1]:,} files open here")
        devices = most
    print(f"{devices:,} devices at one web process")
    base, web = servers.web_process()
    tokens = create_users(min(USERS, devices))
    empty = resident_bytes(web)
    before = cpu_s(web)
    device_processes = DeviceProcesses(base, tokens, devices)
    seconds = device_processes.wait_until_connected()
    cpu = cpu_s(web) - before
    full = resident_bytes(web)
    aim = MOST_S if devices == DEVICES else None
    record(f"{devices:,} connected and greeted after", seconds, "s", most=aim)
    record("the web process' CPU for it, a device", cpu / devices * 1000, "ms")
    record("memory a device", (full - empty) / devices / 1024, "KiB", most=28)
    show("memory of the web process, without devices and with them", f"{empty >> 20}, {full >> 20} MiB")
    settle()
    before, wal, began = cpu_s(web), wal_position(), time.monotonic()
    time.sleep(60)  # each is pinged twice, and the process' lease renewed four times
    passed = time.monotonic() - began
    record(
        "CPU a device while it only stays, of a second", (cpu_s(web) - before) / passed / devices * 1e6, "µs"
    )
    a_day = (wal_position() - wal) / passed * 86_400 / 1e9
    record(f"WAL while all {devices:,} only stay", a_day, "GB a day", most=0.5)
    record("of all, no longer online then", devices - Device.objects.online().count(), most=0)
    web.kill()
    web.start()
    with Stopwatch() as starting:
        web.wait_until(lambda: listens(int(base.rsplit(":", 1)[1])), within_s=180, every_s=0.05)
    seconds = device_processes.wait_until_connected()
    record(f"{devices:,} back after a kill, since the process listens again", seconds, "s", most=aim)
    show("seconds until it did, in the face of their attempts", f"{starting.wall:.1f}")
    record("memory a device then", (resident_bytes(web) - empty) / devices / 1024, "KiB")
    device_processes.end()


if __name__ == "__main__":
    if sys.argv[1:2] == ["hold"]:
        asyncio.run(run_devices(sys.argv[2]))
    else:
        with bench_servers() as started:
            main(started, int(sys.argv[1]) if sys.argv[1:] else DEVICES)
