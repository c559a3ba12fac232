"""Schedules over ten years in 400 zones, against the oracle of the tests: every slot of 20 expressions.

    python -m bench.cron_oracle [how many zones]

Zones that behave alike are aliases for the most part, so each behaviour is taken once before any is taken twice.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from itertools import islice, zip_longest
from multiprocessing import Pool
from resource import RUSAGE_CHILDREN, getrusage
from zoneinfo import available_timezones

from bench.kit import show
from tests.agents.cron_oracle import ODD, RULES, stretches
from tests.agents.test_cron_oracle import COMING, differences


def zones(count: int) -> tuple[list[str], int]:
    """Names of zones, and how many different behaviours over these years are among them."""
    alike: defaultdict[tuple[tuple[int, int, int], ...], list[str]] = defaultdict(list)
    for name in sorted(available_timezones() - {"localtime"}):
        alike[stretches(name, COMING)].append(name)
    in_turn = (name for names in zip_longest(*alike.values()) for name in names if name)
    return list(islice(in_turn, count)), min(count, len(alike))


def _ask(place: tuple[str, int]) -> list[tuple[str, list[str]]]:
    return differences(*place)


def main() -> None:
    began = time.perf_counter()
    names, behaviours = zones(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
    places = [(name, COMING) for name in names] + list(ODD.items())
    with Pool(os.cpu_count()) as pool:
        answers = pool.map(_ask, places, chunksize=4)
        pool.close()
        pool.join()
    took = time.perf_counter() - began
    spent = time.process_time() + sum(getrusage(RUSAGE_CHILDREN)[:2])
    wrong = [(*place, *found) for place, answer in zip(places, answers, strict=True) for found in answer]
    show(
        "zones over the ten years to come",
        str(len(names)),
        f"{behaviours} behaviours, {len(RULES)} expressions",
    )
    show("zones over ten years in which they did something rare", str(len(ODD)))
    show("expressions whose slots are not the oracle's", str(len(wrong)), "aim: 0")
    show("time", f"{took:.0f} s", "aim: under 60 s on two cores with nothing else to do")
    show("CPU, of all processes", f"{spent:.0f} s")
    for each in wrong[:20]:
        print(*each)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
