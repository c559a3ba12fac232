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
    UserWords.want_run = UserWords.want_stop = lambda self, name, *, misled, is_only: True  # type: ignore[method-assign]


def without_questions() -> None:
    """Whatever waits for the user's yes has it."""
    from chat.approvals import Approvals

    async def confirm(self: Any, *asked: Any) -> None:
        return None

    Approvals.confirm = confirm  # type: ignore[assignment,method-assign]


def without_grounding() -> None:
    """Whatever a model proposes counts as said by the user."""
    from memory import grounding, operation_validation

    grounding.problem = lambda content, said, *, day=None: ""
    grounding.foreign_facts = lambda text, material, *, day=None: []
    operation_validation.grounding = grounding  # type: ignore[attr-defined]


def without_answers() -> None:
    """The memory is shown answers that quote texts of others."""
    from chat import turn_ends

    turn_ends._answer_to_keep = lambda claimed, result: result.text


def without_records() -> None:
    """Whatever fields a model proposes are sent to the device, review flags included."""
    from agents import record_validation

    check = record_validation.RecordRules._record

    def trusting(rules: Any, item: Any, place: str, part: int) -> Any:
        record = check(rules, item, place, part)
        record.data.update(item["data"])
        return record

    record_validation.RecordRules._record = trusting  # type: ignore[assignment,method-assign]


def without_proposals() -> None:
    """Whatever fields of an agent a model proposes in a journey are in the proposal."""
    from agents.journeys import interview, services

    class Trusting(interview.AgentProposal, extra="allow"):
        pass

    check, interview.AgentProposal = interview._outcome, Trusting  # type: ignore[misc]
    services.JourneyState.model_fields["proposal"].annotation = Trusting | None
    services.JourneyState.model_rebuild(force=True)

    def trusting(given: Any, brief: Any) -> Any:
        proposal = check(given, brief)
        return Trusting(**(given | proposal.model_dump()))

    interview._outcome = trusting


SABOTAGES: Final[dict[str, Callable[[], None]]] = {
    "words": without_words,
    "questions": without_questions,
    "grounding": without_grounding,
    "answers": without_answers,
    "records": without_records,
    "proposals": without_proposals,
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
