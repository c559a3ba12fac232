"""A folder of 40 documents, read by an agent with a model that takes 20 s each and has two slots.

`python -m bench.slow_model [SECONDS]`; it takes 40 × SECONDS / 2. Web, worker, device and model are processes of their
own. The model tells how many requests came, were answered, and were given up by the worker; each answered one is a
document that was read once.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Final

from bench.agents_run import UserWithDevice
from bench.harness import BenchServers, bench_servers, record, show

DOCUMENTS: Final = 40
SLOTS: Final = 2
SECONDS: Final = 20.0


def main(servers: BenchServers, seconds: float = SECONDS) -> None:
    from django.conf import settings

    user = UserWithDevice(servers)
    model = user.model(str(seconds), "0", str(SLOTS))
    worker = user.worker_with(f"{model}/v1", settings.MODEL_CONCURRENCY_PER_USER)
    took = user.run(DOCUMENTS)  # raises if a document was not read
    worker.stop()
    with urllib.request.urlopen(f"{model}/counts", timeout=10) as answer:
        counts = json.load(answer)
    floor = DOCUMENTS * seconds / SLOTS
    record(f"{DOCUMENTS} documents, {seconds:g} s each", took, "s", beside=floor, name="slots always busy")
    show("requests: asked, answered", f"{counts['asked']}, {counts['answered']}")
    record("requests that were given up", counts["given_up"], most=0)
    show("of them at the model at once, at most", str(counts["most_at_once"]))


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with bench_servers() as started:
        main(started, *map(float, sys.argv[1:]))
