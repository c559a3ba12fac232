"""Processes that carry out actions, and are killed in the midst of them."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from bench.payments.failpoints import failpoints
from bench.payments.ways import WAYS, use_stripe_at

# (the name of a method of a Way, its arguments)
Action = tuple[str, tuple[Any, ...]]

_WAIT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Done:
    action: Action
    answer: str


def serve(
    way: str, api: str, log: str, actions: Sequence[Action], die_at: int, told: Connection, seed: int
) -> None:
    """What a process does: it tells of each action that it has finished. At step `die_at` it is killed."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    random.seed(seed)
    use_stripe_at(api)
    does = WAYS[way]()
    with failpoints(die_at):
        for number, (name, arguments) in enumerate(actions):
            told.send((number, getattr(does, name)(*arguments)))
    told.close()


class Processes:
    """Forks processes from one that has loaded everything."""

    def __init__(self, way: str, api: str, folder: Path) -> None:
        self._way, self._api, self._log = way, api, str(folder / "orders.log")
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["bench.payments.preload"])
        self.killed = 0

    def run(
        self, shares: Sequence[Sequence[Action]], chance: random.Random, kills: float
    ) -> tuple[list[Done], list[Action]]:
        """Carry out each share in a process of its own, all at once; each is killed with this probability at one of its
        steps.

        Returns what was finished, and what was not.
        """
        from django.db import connections

        connections.close_all()
        running = []
        for share in shares:
            die_at = chance.randint(1, WAYS[self._way].steps * len(share)) if chance.random() < kills else 0
            ours, theirs = self._context.Pipe(duplex=False)
            arguments = (self._way, self._api, self._log, share, die_at, theirs, chance.getrandbits(32))
            process = self._context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            running.append((share, process, ours))
        done, left = [], []
        for share, process, pipe in running:
            answers: dict[int, str] = {}
            try:
                while True:
                    if not pipe.poll(_WAIT_S):
                        process.kill()
                        raise AssertionError("a process hangs")
                    number, answer = pipe.recv()
                    answers[number] = answer
            except EOFError:
                process.join()
            self.killed += process.exitcode == -9
            assert process.exitcode in (0, -9), Path(self._log).read_text()[-3000:]
            done += [Done(share[number], answer) for number, answer in answers.items()]
            left += [action for number, action in enumerate(share) if number not in answers]
        return done, left
