"""Compares every slot of 20 cron expressions over ten years in 400 time zones with an independent implementation.

    python -m bench.cron_oracle [how many zones]

Most zones with the same behaviour are aliases, so each behaviour is chosen once before any is chosen twice.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice, zip_longest
from multiprocessing import Pool
from resource import RUSAGE_CHILDREN, getrusage
from zoneinfo import available_timezones

from bench.harness import record, show
from tests.agents.cron_comparison import COMING, differences
from tests.agents.cron_oracle import ODD, RULES, Stretches, stretches

ZoneYears = tuple[str, int, Stretches]  # a zone, the first of its ten years, what its clock does in them


def chosen(zones: Sequence[ZoneYears], count: int) -> tuple[list[ZoneYears], int]:
    """Choose `count` zones, each behaviour once before any twice. Returns them and the number of behaviours."""
    alike: defaultdict[Stretches, list[ZoneYears]] = defaultdict(list)
    for zone in zones:
        alike[zone[2]].append(zone)
    in_turn = (zone for each in zip_longest(*alike.values()) for zone in each if zone)
    return list(islice(in_turn, count)), min(count, len(alike))


def _load_zone(zone: tuple[str, int]) -> ZoneYears:
    return *zone, stretches(*zone)


def _find_differences(zone: ZoneYears) -> list[tuple[str, list[str]]]:
    return differences(*zone)


def main() -> None:
    began = time.perf_counter()
    names = sorted(available_timezones() - {"localtime"})
    with Pool(os.cpu_count()) as pool:
        there = pool.map(_load_zone, [(name, COMING) for name in names] + list(ODD.items()), chunksize=16)
        coming, behaviours = chosen(there[: len(names)], int(sys.argv[1]) if len(sys.argv) > 1 else 400)
        zones = coming + there[len(names) :]
        answers = pool.map(_find_differences, zones, chunksize=4)
        pool.close()
        pool.join()
    took = time.perf_counter() - began
    spent = time.process_time() + sum(getrusage(RUSAGE_CHILDREN)[:2])
    wrong = [(*zone[:2], *found) for zone, answer in zip(zones, answers, strict=True) for found in answer]
    show(
        "zones over the ten years to come",
        str(len(coming)),
        f"{behaviours} behaviours, {len(RULES)} expressions",
    )
    show("zones over ten years in which they did something rare", str(len(ODD)))
    record("expressions whose slots are not the oracle's", len(wrong), most=0)
    record("time, with both of two cores", took, "s", most=60)
    record("CPU, of all processes", spent, "s")
    for each in wrong[:20]:
        print(*each)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
