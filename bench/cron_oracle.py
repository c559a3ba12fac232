"""Schedules over ten years in 400 zones, against the oracle of the tests: every slot of 20 expressions.

    python -m bench.cron_oracle [how many zones]

Zones that behave alike are aliases for the most part, so each behaviour is taken once before any is taken twice.
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

from bench.harness import show
from tests.agents.cron_comparison import COMING, differences
from tests.agents.cron_oracle import ODD, RULES, Stretches, stretches

Place = tuple[str, int, Stretches]  # a zone, the first of its ten years, what its clock does in them


def chosen(places: Sequence[Place], count: int) -> tuple[list[Place], int]:
    """Of these, and how many different behaviours are among them."""
    alike: defaultdict[Stretches, list[Place]] = defaultdict(list)
    for place in places:
        alike[place[2]].append(place)
    in_turn = (place for each in zip_longest(*alike.values()) for place in each if place)
    return list(islice(in_turn, count)), min(count, len(alike))


def _look(place: tuple[str, int]) -> Place:
    return *place, stretches(*place)


def _ask(place: Place) -> list[tuple[str, list[str]]]:
    return differences(*place)


def main() -> None:
    began = time.perf_counter()
    names = sorted(available_timezones() - {"localtime"})
    with Pool(os.cpu_count()) as pool:
        there = pool.map(_look, [(name, COMING) for name in names] + list(ODD.items()), chunksize=16)
        coming, behaviours = chosen(there[: len(names)], int(sys.argv[1]) if len(sys.argv) > 1 else 400)
        places = coming + there[len(names) :]
        answers = pool.map(_ask, places, chunksize=4)
        pool.close()
        pool.join()
    took = time.perf_counter() - began
    spent = time.process_time() + sum(getrusage(RUSAGE_CHILDREN)[:2])
    wrong = [(*place[:2], *found) for place, answer in zip(places, answers, strict=True) for found in answer]
    show(
        "zones over the ten years to come",
        str(len(coming)),
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
