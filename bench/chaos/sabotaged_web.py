"""A web process that marks the end of a run as told three seconds after the transaction that stores the message, to
prove that bench.chaos.run_ends notices. The product itself has no such switch."""

from __future__ import annotations

import time
from typing import Any, Final

import django

_APART_S: Final = 3.0


def mark_after_the_message() -> None:
    from chat import turn_ends

    finish, settle = turn_ends.finish_turn, turn_ends._settle_heard_runs
    turn_ends._settle_heard_runs = lambda request, claimed, result: None

    def finish_then_mark(**given: Any) -> Any:
        following = finish(**given)
        if given["request"].origin is not None or given["result"].may_hold_runs:
            time.sleep(_APART_S)
            settle(given["request"], given["claimed"], given["result"])
        return following

    turn_ends.finish_turn = finish_then_mark


if __name__ == "__main__":
    django.setup()
    mark_after_the_message()
    from adiuva.server import main

    main()
