"""Large bodies, writers at once, crashes and damage: what the vault holds and what it costs.

`python -m bench.vault` takes a few minutes; `--full` brings 2 GiB to each store, kills 20 times and does 10,000
operations, or as many as `--seconds` allow. Names choose parts: strangers, at_once, bodies, bodies_daphne, bodies_s3,
resuming, resuming_s3, crashes, damaged. What is compared of vectors is in bench.vault_vectors.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from bench.harness import BenchServers, bench_servers
from bench.vault_parts.at_once import readers, writers
from bench.vault_parts.crashes import Crashes, damage
from bench.vault_parts.large_bodies import resumed, s3, whole_bodies
from bench.vault_parts.strangers import bad_token


def strangers(servers: BenchServers) -> None:
    for name in ("uvicorn", "daphne"):
        base, child = servers.web_process(ADIUVA_SERVER=name)
        bad_token(base, name)
        child.stop()


def at_once(servers: BenchServers) -> None:
    from tests.factories import somebody

    base, child = servers.web_process()
    writers(base, somebody())
    readers(base, somebody())
    child.stop()


def bodies(servers: BenchServers) -> None:
    from tests.factories import somebody

    whole_bodies(servers, somebody(), "files", 16)


def bodies_daphne(servers: BenchServers) -> None:
    from tests.factories import somebody

    whole_bodies(servers, somebody(), "files, daphne", 16, ADIUVA_SERVER="daphne")


def bodies_s3(servers: BenchServers) -> None:
    from tests.factories import somebody

    whole_bodies(servers, somebody(), "S3", 64, **s3(servers))


def resuming(servers: BenchServers) -> None:
    from tests.factories import somebody

    resumed(servers, somebody(), "files")


def resuming_s3(servers: BenchServers) -> None:
    from tests.factories import somebody

    resumed(servers, somebody(), "S3", **s3(servers))


def crashes(servers: BenchServers) -> None:
    from tests.factories import somebody

    Crashes(servers, somebody()).run()


def damaged(servers: BenchServers) -> None:
    from tests.factories import somebody

    damage(somebody())


PARTS: Final = {
    "strangers": strangers,
    "at_once": at_once,
    "bodies": bodies,
    "bodies_daphne": bodies_daphne,
    "bodies_s3": bodies_s3,
    "resuming": resuming,
    "resuming_s3": resuming_s3,
    "crashes": crashes,
    "damaged": damaged,
}


def main() -> None:
    wanted = [name for name in sys.argv[1:] if name in PARTS] or PARTS
    os.environ["ADIUVA_ACCESS_TOKEN_S"] = "86400"  # of a person's one token, for all of a part
    with bench_servers() as servers:
        for name in wanted:
            print(name)
            PARTS[name](servers)


if __name__ == "__main__":
    main()
