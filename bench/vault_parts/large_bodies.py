"""Large bodies: what they cost a server that takes or sends them, and what is left when it is killed meanwhile."""

from __future__ import annotations

import base64
import hashlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from adiuva.embedded.ports import free_port
from adiuva.embedded.processes import Child
from bench.harness import BenchServers, Stopwatch, listens, record
from bench.vault_parts.common import BLOCK, KILLS, MIB, SIZE, TUS, backup_headers, time_passes

if TYPE_CHECKING:
    from tests.factories import Person


def block(number: int) -> bytes:
    return number.to_bytes(8, "big") + BLOCK[8:]


def data(start: int, end: int) -> Iterator[bytes]:
    """Bytes of one large file, each MiB of it another."""
    while start < end:
        number, at = divmod(start, MIB)
        piece = block(number)[at : at + end - start]
        start += len(piece)
        yield piece


def checksum(size: int) -> str:
    digest = hashlib.sha256()
    for piece in data(0, size):
        digest.update(piece)
    return digest.hexdigest()


def memory(child: Child, name: str) -> int:
    """Bytes, by a line of /proc/…/status."""
    for line in Path(f"/proc/{child.pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


class Watch:
    """The growth of a process, and the files it opens outside its store."""

    def __init__(self, child: Child, store: str) -> None:
        self.child, self.store = child, store
        self.elsewhere: set[str] = set()
        Path(f"/proc/{child.pid}/clear_refs").write_text("5")
        self.before = memory(child, "VmRSS")
        self.opened = self._files()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _files(self) -> set[str]:
        found = set()
        for each in Path(f"/proc/{self.child.pid}/fd").iterdir():
            try:
                found.add(str(each.readlink()))
            except OSError:
                continue
        return {name for name in found if name.startswith("/") and not name.startswith(("/dev", self.store))}

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self.elsewhere |= self._files() - self.opened

    def end(self) -> int:
        self._done.set()
        self._thread.join()
        return memory(self.child, "VmHWM") - self.before


def s3(servers: BenchServers) -> dict[str, str]:
    from tests.fakes.s3 import S3

    port = free_port()
    child = servers.run(f"s3-{port}", "-m", "tests.fakes.s3", str(port), str(servers.folder / "s3"))
    child.wait_until(lambda: listens(port), within_s=30)
    return {
        "ADIUVA_STORE": "s3://bench/prefix",
        "ADIUVA_STORE_ENDPOINT": f"http://127.0.0.1:{port}",
        "ADIUVA_STORE_REGION": "eu-south-1",
        "ADIUVA_STORE_ACCESS_KEY": S3.KEY,
        "ADIUVA_STORE_SECRET_KEY": S3.SECRET,
    }


def whole_bodies(servers: BenchServers, person: Person, name: str, most: int, **env: str) -> None:
    base, child = servers.web_process(**env)
    digest = checksum(SIZE)
    with person.rest(base) as rest:
        rest.timeout = httpx.Timeout(600)
        small = checksum(24 * MIB)
        for at in (1, 2):  # threads and libraries are there
            rest.put("/backup", content=data(0, 24 * MIB), headers=backup_headers(small, 24 * MIB, at))
        watch = Watch(child, str(servers.folder / "state" / "objects"))
        with Stopwatch() as took:
            answer = rest.put("/backup", content=data(0, SIZE), headers=backup_headers(digest, SIZE, 3))
        grown = watch.end()
        assert answer.json() == {"ok": True}, answer.text
        record(f"{name}: {SIZE // MIB} MiB up, growth of the server", grown / MIB, "MiB", most=most)
        record(f"{name}: files opened elsewhere", len(watch.elsewhere), most=0)
        record(f"{name}: speed up", SIZE / MIB / took.wall, "MiB/s")
        watch, found = Watch(child, str(servers.folder / "state" / "objects")), hashlib.sha256()
        with Stopwatch() as took, rest.stream("GET", "/backup") as download:
            for piece in download.iter_bytes(MIB):
                found.update(piece)
        assert found.hexdigest() == digest
        record(f"{name}: down, growth of the server", watch.end() / MIB, "MiB", most=most)
        record(f"{name}: speed down", SIZE / MIB / took.wall, "MiB/s")
        ranges(rest, digest)
    child.stop()


def ranges(rest: httpx.Client, digest: str) -> None:
    """The download in 50 parts, of which each second is cut and gone on with."""
    found, at, step = hashlib.sha256(), 0, SIZE // 50 + 1
    while at < SIZE:
        end = min(SIZE, at + step)
        with rest.stream("GET", "/backup", headers={"Range": f"bytes={at}-{end - 1}"}) as part:
            assert part.status_code == 206
            for piece in part.iter_raw():
                found.update(piece)
                at += len(piece)
                if random.random() < 0.01:
                    break  # cut
    record("downloaded in ranges, cut and resumed: differ", found.hexdigest() != digest, most=0)


class Killed(Exception):
    """The server was killed while it was sent something."""


def resumed(servers: BenchServers, person: Person, name: str, **env: str) -> None:
    """An upload whose server is killed again and again."""
    digest, upload, lost = checksum(SIZE), "", 0
    for kill in range(KILLS + 1):
        base, child = servers.web_process(**env)
        with person.rest(base) as rest:
            rest.timeout = httpx.Timeout(600)
            if not upload:
                purpose = base64.b64encode(b"backup").decode()
                begin = {**TUS, "Upload-Length": str(SIZE), "Upload-Metadata": f"purpose {purpose}"}
                upload = rest.post("/storage/uploads", headers=begin).headers["Location"].rpartition("/")[2]
            time_passes()
            offset = int(rest.head(f"/storage/uploads/{upload}", headers=TUS).headers["Upload-Offset"])
            sent = [offset]
            end = (
                SIZE if kill == KILLS else min(SIZE, SIZE * (kill + 1) // (KILLS + 1) + random.randrange(MIB))
            )

            def pieces() -> Iterator[bytes]:
                for piece in data(sent[0], SIZE):  # noqa: B023
                    if sent[0] >= end and end < SIZE:  # noqa: B023
                        child.kill()  # noqa: B023
                        raise Killed
                    sent[0] += len(piece)  # noqa: B023
                    yield piece

            headers = {
                **TUS,
                "Upload-Offset": str(offset),
                "Content-Type": "application/offset+octet-stream",
                "Content-Length": str(SIZE - offset),
            }
            try:
                rest.patch(f"/storage/uploads/{upload}", content=pieces(), headers=headers)
            except (httpx.HTTPError, OSError, Killed):
                lost += 1
            if kill == KILLS:
                named = {**backup_headers(digest, 0, 1_000 + hash(name) % 1_000), "X-Upload-Id": upload}
                answer = rest.put("/backup", headers=named)
                assert answer.status_code == 200, answer.text
                (newest, *_) = rest.get("/backup/history").json()
                same = newest["checksum"] == digest
                record(f"{name}: another hash after {KILLS} kills", not same, most=0)
        child.stop()
