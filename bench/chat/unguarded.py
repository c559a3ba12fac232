"""Processes with one guard against hostile texts switched off, to prove that the bench notices. The product itself has
no such switch.

BENCH_SABOTAGE names the guard. `python -m bench.chat.unguarded` is a web process, and with the arguments of Celery's
command line a worker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Final

import django


def without_words() -> None:
    """Whatever a model wants to write counts as asked for by the user."""
    from chat.user_intent import UserWords

    UserWords.ask_for = lambda self, title, values, named=(): True  # type: ignore[method-assign]


def without_grounding() -> None:
    """Whatever a model proposes counts as said by the user."""
    from memory import grounding, operations

    grounding.problem = lambda content, said, *, day=None: ""
    grounding.foreign_facts = lambda text, material, *, day=None: []
    operations.grounding = grounding  # type: ignore[attr-defined]


def without_answers() -> None:
    """The memory is shown answers that quote texts of others."""
    from chat import turn_rows

    turn_rows._answer_to_keep = lambda claimed, result: result.text


def without_records() -> None:
    """Whatever fields a model proposes are sent to the device, review flags included."""
    from agents import record_rules

    check = record_rules.RecordRules._record

    def trusting(rules: Any, item: Any) -> Any:
        record = check(rules, item)
        record.data.update(item["data"])
        return record

    record_rules.RecordRules._record = trusting  # type: ignore[assignment,method-assign]


SABOTAGES: Final[dict[str, Callable[[], None]]] = {
    "words": without_words,
    "grounding": without_grounding,
    "answers": without_answers,
    "records": without_records,
}


def sabotage(name: str) -> None:
    SABOTAGES[name]()


def main(arguments: list[str]) -> None:
    django.setup()
    sabotage(os.environ["BENCH_SABOTAGE"])
    if arguments:
        from celery.__main__ import main as celery

        sys.argv = ["celery", *arguments]
        celery()
    else:
        from adiuva.server import main as web

        web()


if __name__ == "__main__":
    main(sys.argv[1:])
