"""Writers and readers at once: what they lose and miss."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from bench.harness import record, show
from bench.vault_parts.common import FULL, WRITERS, content

if TYPE_CHECKING:
    from tests.factories import Person


def writers(base: str, person: Person) -> None:
    with person.rest(base) as rest:
        place = f"/storage/records/{rest.post('/storage/records', json={**content(b''), 'table': 't'}).json()['id']}"

        def write(number: int) -> int:
            with person.rest(base) as mine:
                for tries in range(10_000):
                    there = mine.get(place).content
                    etag = f'"{hashlib.sha256(there).hexdigest()}"'
                    new = content(there + bytes([number]))
                    if mine.put(place, json=new, headers={"If-Match": etag}).status_code == 200:
                        return tries
            raise AssertionError

        with ThreadPoolExecutor(WRITERS) as pool:
            refused = sum(pool.map(write, range(WRITERS)))
        lost = WRITERS - len(set(rest.get(place).content))
    show(f"{WRITERS} writers of one record: refused, and tried again", str(refused))
    record(f"{WRITERS} writers of one record: lost", lost, most=0)


def readers(base: str, person: Person) -> None:
    per_writer = 500 if FULL else 20
    done, seen, versions = threading.Event(), Counter[str](), Counter[str]()

    def read() -> None:
        cursor = ""
        with person.rest(base) as rest:
            while True:
                last = done.is_set()
                found = rest.get("/storage/changes", params={"since": cursor, "limit": 100}).json()
                seen.update({each["id"]: each["version"] - seen[each["id"]] for each in found["changes"]})
                cursor = found["cursor"]
                if last and found["complete"]:
                    return

    def write(_: int) -> None:
        with person.rest(base) as rest:
            mine = rest.post("/storage/records", json={**content(os.urandom(50)), "table": "t"}).json()["id"]
            versions[mine] = 1
            for _ in range(per_writer - 1):
                stored = rest.put(f"/storage/records/{mine}", json=content(os.urandom(50))).json()
                versions[mine] = stored["version"]

    with ThreadPoolExecutor(21) as pool:
        reader = pool.submit(read)
        list(pool.map(write, range(20)))
        done.set()
        reader.result()
    missed = sum(seen[each] != version for each, version in versions.items())
    record(f"{20 * per_writer} writes by 20, read by cursor: missed", missed, most=0)
