"""Processes of the product that tell models a fixed present time, so that "next Friday" has one right answer.

`python -m bench.evaluation.fixed_clock` is a web process, and with the arguments of Celery's command line a worker.
Only what models are told is fixed; leases, tokens and rows keep the real time.
"""

from __future__ import annotations

import datetime as dt
import sys
from types import SimpleNamespace
from typing import Any

import django

from bench.evaluation.cases import NOW


class FixedTime(dt.datetime):
    """A datetime class whose present is bench.evaluation.cases.NOW."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Any:
        return NOW.astimezone(tz)


def fix_clock() -> None:
    """Of the modules that tell models the time."""
    from agents import extraction
    from chat import turn

    vars(extraction)["dt"] = SimpleNamespace(**vars(dt) | {"datetime": FixedTime})
    vars(turn)["datetime"] = FixedTime


def main(arguments: list[str]) -> None:
    django.setup()
    fix_clock()
    if arguments:
        from celery.__main__ import main as celery

        sys.argv = ["celery", *arguments]
        celery()
    else:
        from adiuva.server import main as web

        web()


if __name__ == "__main__":
    main(sys.argv[1:])
