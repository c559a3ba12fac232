"""Of many cases of one kind, a run of the suite tries a random few; with TEST_CASES=all it tries them all.

So the suite stays quick, and over many runs each case is tried. The test processes of one run draw the same cases.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")

_SEED = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
TRIES_ALL = os.environ.get("TEST_CASES") == "all"


def few(cases: Iterable[T], count: int) -> list[T]:
    """At most `count` of the cases, in their order."""
    given = list(cases)
    if TRIES_ALL or len(given) <= count:
        return given
    return [given[place] for place in sorted(random.Random(_SEED).sample(range(len(given)), count))]


# The servers of ASGI that the product runs behind. Most tests use the first; where each costs a process of its own,
# a run tries one of them.
ONE_SERVER = few(["uvicorn", "daphne"], 1)


def fewer(count: int) -> int:
    """How many examples of a property test to try: a quarter, or with TEST_CASES=all as many as given."""
    return count if TRIES_ALL else max(5, count // 4)
