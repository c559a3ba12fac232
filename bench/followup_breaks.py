"""The ends of 500 runs on their way into conversations, each broken off at any statement: is each told exactly once?

`python -m bench.followup_breaks [ENDS] [--sabotage]`. A break is a process that dies or a connection that is lost,
before or after a statement, or after a commit whose success nobody learns of. With the sabotage, an end is marked as
told behind the transaction that stores the message; the bench then fails if all are told once all the same. That is
seen after 60 ends, in half a minute.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections import Counter
from typing import Final

from bench.harness import Stopwatch, bench_servers, record, show

ENDS: Final = 500
_ENDS_OF_CONTROL: Final = 60
_OF_A_PERSON: Final = 20


def mark_behind_the_message() -> None:
    """Take the mark out of the transaction of the message, as systems do that write one and then the other."""
    from agents import run_watches
    from chat import turn_ends
    from tests.chat.followup_breaks import Broken

    finish = turn_ends.finish_turn
    turn_ends._settle_heard_runs = lambda request, claimed, result: None

    def finish_then_mark(**given):  # type: ignore[no-untyped-def]
        following = finish(**given)
        if given["request"].origin is not None and random.random() < 0.5:
            raise Broken
        run_watches.settle(given["claimed"].turn_id, told=True)
        return following

    turn_ends.finish_turn = finish_then_mark


def _tell_all(ends: int, chance: random.Random) -> tuple[Counter[int], int]:
    """How many ends were told so many times, and how often it broke off."""
    from tests.chat.followup_breaks import Way
    from tests.factories import somebody

    told: Counter[int] = Counter()
    breaks = 0
    for number in range(ends):
        if number % _OF_A_PERSON == 0:
            person = somebody()
        way = Way(person, chance)
        way.go()
        told[way.tellings()] += 1
        breaks += way.breaks
    return told, breaks


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.followup_breaks", description=__doc__)
    parser.add_argument("ends", nargs="?", type=int, help=f"{ENDS}, with the sabotage {_ENDS_OF_CONTROL}")
    parser.add_argument("--sabotage", action="store_true")
    given = parser.parse_args()
    ends = given.ends or (_ENDS_OF_CONTROL if given.sabotage else ENDS)
    with bench_servers():
        logging.disable(logging.WARNING)  # that answers come too late is what this is about
        if given.sabotage:
            mark_behind_the_message()
        with Stopwatch() as watch:
            told, breaks = _tell_all(ends, random.Random(17))
    show(f"{ends} ends, {breaks} breaks: told exactly once", f"{told[1]}")
    record("told more often", ends - told[1] - told[0], most=0)
    record("never told", told[0], most=0)
    show("time", f"{watch.wall:.0f} s")
    assert (told[1] == ends) is not given.sabotage, told


if __name__ == "__main__":
    main()
