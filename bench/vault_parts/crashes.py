"""Mixed operations on a server that is killed now and then, and stored bytes that are damaged."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
import uuid
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from bench.harness import BenchServers, Stopwatch, record, show
from bench.vault_parts.common import MIB, MOST_S, OPERATIONS, TUS, backup_headers, content, time_passes

if TYPE_CHECKING:
    from tests.factories import Person


@dataclass
class Crashes:
    """Mixed operations of several clients on a server that is killed now and then."""

    servers: BenchServers
    person: Person
    base: str = ""
    done: int = 0
    known: deque[str] = field(default_factory=lambda: deque(maxlen=100))
    outcomes: Counter[int] = field(default_factory=Counter)

    def run(self) -> None:
        self.base, child = self.servers.web_process()
        end = threading.Event()
        kills = 0

        def work(seed: int) -> None:
            chance = random.Random(seed)
            while not end.is_set():
                try:
                    with self.person.rest(self.base) as rest:
                        rest.timeout = httpx.Timeout(20)
                        while not end.is_set():
                            self.outcomes[self.one(rest, chance)] += 1
                            self.done += 1
                except (httpx.HTTPError, KeyError, ValueError):
                    self.outcomes[0] += 1
                    time.sleep(0.05)

        with ThreadPoolExecutor(6) as pool:
            for seed in range(6):
                pool.submit(work, seed)
            until = time.monotonic() + MOST_S
            while self.done < OPERATIONS and time.monotonic() < until:
                time.sleep(random.uniform(1.0, 12.0))
                child.kill()
                kills += 1
                time_passes()
                self.expire()
                self.base, child = self.servers.web_process()
                if kills % 10 == 0:
                    print(f"    {self.done} operations, {kills} kills", flush=True)
            end.set()
        self.report(kills)
        child.stop()

    @staticmethod
    def expire() -> None:
        """What was begun half a minute ago and is not ended was a killed server's; a day passes for it."""
        from django.db.models.functions import Now

        from adiuva.vault import sweep
        from adiuva.vault.models import Upload

        left = Upload.objects.filter(created_at__lt=Now() - timedelta(seconds=30))
        left.update(expires_at=Now() - timedelta(seconds=1))
        sweep.run()

    def one(self, rest: httpx.Client, chance: random.Random) -> int:
        raw = os.urandom(chance.randrange(200_000))
        known = list(self.known)  # those that were deleted as well
        place = f"/storage/records/{chance.choice(known) if known else uuid.uuid4()}"
        match chance.choice(
            ["create", "replace", "delete", "undelete", "backup", "upload", "drop", "upload"]
        ):
            case "create":
                return self.create(rest, {**content(raw), "table": "t"})
            case "replace":
                return rest.put(place, json=content(raw)).status_code
            case "delete":
                return rest.delete(place).status_code
            case "undelete":
                return rest.post(f"{place}/undelete").status_code
            case "backup":
                headers = backup_headers(content(raw)["checksum"], len(raw), chance.randrange(10**12))
                return rest.put("/backup", content=raw, headers=headers).status_code
            case "drop":
                (*_, oldest) = rest.get("/backup/history").json() or [{"id": uuid.uuid4()}]
                return rest.delete(f"/backup/{oldest['id']}").status_code
        made = rest.post("/storage/uploads", headers={**TUS, "Upload-Length": str(len(raw))})
        if not made.is_success:
            return made.status_code
        upload = made.headers["Location"].rpartition("/")[2]
        headers = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        rest.patch(f"/storage/uploads/{upload}", content=raw, headers=headers)
        named = {"upload": upload, "checksum": content(raw)["checksum"], "table": "t"}
        return self.create(rest, named)

    def create(self, rest: httpx.Client, given: dict[str, Any]) -> int:
        made = rest.post("/storage/records", json=given)
        if made.is_success:
            self.known.append(made.json()["id"])
        return made.status_code

    def report(self, kills: int) -> None:
        from django.db.models import Sum
        from django.db.models.functions import Now

        from adiuva.object_store import garbage
        from adiuva.object_store.models import Garbage
        from adiuva.object_store.store import SHARDS, store
        from adiuva.vault import object_references, sweep
        from adiuva.vault.models import Backup, Record, Upload
        from billing.models import StoredAmount

        time_passes()
        Upload.objects.update(expires_at=Now() - timedelta(seconds=1))
        while sweep.run()["uploads"]:
            pass
        stored = {
            "storage_bytes": Record.objects.of(self.person.id).live().aggregate(n=Sum("size"))["n"] or 0,
            "backup_bytes": Backup.objects.of(self.person.id).aggregate(n=Sum("size"))["n"] or 0,
        }
        off = 0
        for kind, size in stored.items():
            amount = StoredAmount.objects.get(user_id=self.person.id, kind=kind)
            off += abs(amount.used - size) + amount.reserved
        Garbage.objects.update(owner=None)
        while garbage.collect():
            pass
        there = {each.name for shard in SHARDS for each in store().list(shard)}
        show("operations, kills of the server", f"{self.done}, {kills}")
        record("bytes off after kills", off, most=0)
        record(
            "objects of the store that no row knows", len(there - object_references.referred(there)), most=0
        )
        rows = [model._default_manager.exclude(object=None) for model in (Record, Backup)]
        known = {name for found in rows for name in found.values_list("object", flat=True)}
        record("rows whose object is missing", len(known - there), most=0)
        print(f"    answers by status (0: the server was killed): {dict(sorted(self.outcomes.items()))}")


def damage(person: Person) -> None:
    from django.conf import settings

    from adiuva.vault import backups, receiving, scrub, uploads
    from adiuva.vault.backups import Description
    from adiuva.vault.models import Backup

    mine = Backup.objects.of(person.id)
    settings.STORE["keep_backups"] = 0
    flipped = set()
    for at in range(120):
        raw = os.urandom(random.randrange(1, 100_000))
        upload = uploads.begin(user_id=person.id, purpose="backup", length=len(raw), direct=True)
        receiver = receiving.open_receiver(person.id, upload.pk, offset=0, direct=True)
        receiver.write(raw)
        described = Description(1, 10**12 + at, hashlib.sha256(raw).digest())
        made = backups.store(person.id, described, receiver.finish())
        receiver.close()
        if at < 100:
            flipped.add(made.pk)
            with (Path(urlsplit(settings.STORE["url"]).path) / made.object).open("r+b") as file:
                place = random.randrange(len(raw))
                file.seek(place)
                byte = file.read(1)[0] ^ (1 << random.randrange(8))
                file.seek(place)
                file.write(bytes([byte]))
    with Stopwatch() as took:
        found = scrub.run(older_than=timedelta(seconds=-1))
    marked = set(mine.filter(corrupt=True).values_list("pk", flat=True))
    record("100 flipped bits: found", len(marked & flipped), least=100)
    record("intact ones that are said to be damaged", len(marked - flipped), most=0)
    record("verified", found.bytes / MIB / took.wall, "MiB/s")
