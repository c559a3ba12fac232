"""The ends of 1,000 runs at random moments of turns that run in their conversations: is each told exactly once?

`python -m bench.run_end_timings [TIMINGS] [--sabotage late|early] [--seed N] [--at-once N]`. In one process, with a
real PostgreSQL, a scripted model over HTTP and random delays around each step of the database
(tests/chat/run_end_timings.py). With a sabotage an end is marked as told a moment after the transaction that stores the
answer (`late`: some must be told twice), or as soon as a model is given it (`early`: some must never be told); the
bench then fails if all are told once.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from bench.harness import Stopwatch, bench_servers, record, show

if TYPE_CHECKING:  # needs Django, which is set up on servers of the bench's own
    from tests.chat.run_end_timings import Timing

TIMINGS: Final = 1_000
_AT_ONCE: Final = 12
_PEOPLE: Final = 50
_APART: Final = 0.3  # of the marks
_APART_S: Final = 0.5
_MOST_SHOWN: Final = 5


def mark_late() -> None:
    """Take the mark out of the transaction of the answer."""
    from chat import turn_ends

    finish, settle = turn_ends.finish_turn, turn_ends._settle_heard_runs
    turn_ends._settle_heard_runs = lambda request, claimed, result: None

    def finish_then_mark(**given: Any) -> Any:
        following = finish(**given)
        if random.random() < _APART:
            time.sleep(_APART_S)
        settle(given["request"], given["claimed"], given["result"])
        return following

    turn_ends.finish_turn = finish_then_mark


def mark_early() -> None:
    """Count as told what a model was given, whether it has answered or not."""
    from agents import run_watches
    from chat import run_notes

    take = run_notes.take

    def take_and_mark(place: Any, fence: int) -> Any:
        note = take(place, fence)
        if note is not None:
            run_watches.settle(place.turn_id, told=True)
        return note

    run_notes.take = take_and_mark


SABOTAGES: Final[dict[str, Callable[[], None]]] = {"late": mark_late, "early": mark_early}


async def _try(timings: list[Timing], chance: random.Random, at_once: int) -> None:
    from adiuva import llm
    from tests.chat.run_end_timings import try_timings

    await try_timings(timings, chance, at_once=at_once)
    await llm.aclose()


def _prepare(number: int, kinds: Sequence[str], chance: random.Random) -> list[Timing]:
    from tests.chat.run_end_timings import Timing
    from tests.factories import somebody

    people = [somebody() for _ in range(min(number, _PEOPLE))]
    return [Timing(people[n % len(people)], kinds[n % len(kinds)], chance) for n in range(number)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run_end_timings", description=__doc__)
    parser.add_argument("timings", nargs="?", type=int, default=TIMINGS)
    parser.add_argument("--sabotage", choices=SABOTAGES, default="")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--kinds", nargs="+", help="of turns")
    parser.add_argument("--at-once", type=int, default=_AT_ONCE, help="the more, the slower each step is")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    with bench_servers() as servers:
        from django.conf import settings

        from tests.chat.run_end_timings import KINDS, Model, count
        from tests.fakes.provider import Provider

        provider = servers.exit_stack.enter_context(Provider(default=Model(chance)))
        settings.MODEL = {**settings.MODEL, **provider.settings()}
        if given.sabotage:
            SABOTAGES[given.sabotage]()
        timings = _prepare(given.timings, given.kinds or KINDS, chance)
        with Stopwatch() as watch:
            asyncio.run(_try(timings, chance, given.at_once))
        ways = count(timings)
        wrong = [timing.transcript() for timing in timings if not timing.is_right]
        again = [timing.transcript() for timing in timings if timing.was_asked_again]
    once, ends = len(timings) - len(wrong), sum(len(timing.watches) for timing in timings)
    show(f"{len(timings)} timings, {ends} ends: all told exactly once", f"{once}")
    show(
        "told by that turn, a turn of their own, a notice", f"{ways['turn']}, {ways['own']}, {ways['notice']}"
    )
    record("told twice", ways["twice"], most=0)
    record("never told", ways["never"], most=0)
    record("still to be told after a minute", ways["open"], most=0)
    show("told, then asked for by the user and said again", f"{ways['again']}")
    show("time", f"{watch.wall:.0f} s")
    for lines in [*wrong[:_MOST_SHOWN], *again[:1]]:
        print("\n".join(lines))
    return 0 if (not wrong and not ways["open"]) is not bool(given.sabotage) else 1


if __name__ == "__main__":
    sys.exit(main())
