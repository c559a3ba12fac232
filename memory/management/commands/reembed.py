"""`manage.py reembed`: vectors of the present embedding model for all that is remembered."""

from __future__ import annotations

import asyncio
import uuid
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError, CommandParser

from adiuva import llm
from adiuva.accounts.keys import KeyUnavailable, NoSuchUser
from adiuva.core import db
from adiuva.core.crypto import SealBroken
from memory import embedding

_FIRST: Final = uuid.UUID(int=0)
_HELP = """\
Give every entry of the memory a vector of the embedding model that is configured now, ADIUVA_EMBEDDING_MODEL, one user
after the other.

Run it after the model was changed. It may be ended or killed at any time and started again, while everything runs: what
has only a vector of another model is found by its words until its turn comes. Vectors of two models are never compared.
"""


class Command(BaseCommand):
    help = _HELP

    def create_parser(self, prog_name: str, subcommand: str, **options: Any) -> CommandParser:
        return super().create_parser(
            prog_name, subcommand, formatter_class=RawDescriptionHelpFormatter, **options
        )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--user", type=uuid.UUID, help="only this user's, by id")
        parser.add_argument("--batch", type=_positive, default=64, help="entries at once (default: 64)")

    def handle(self, *_: object, user: uuid.UUID | None, batch: int, **options: Any) -> None:
        asyncio.run(self._work(user, batch))

    async def _work(self, user: uuid.UUID | None, batch: int) -> None:
        try:
            await self._all(user, batch)
        except llm.ModelError as error:
            left, _ = await db.run(embedding.count_missing)
            raise CommandError(
                f"The embedding model gave no vectors ({error.code}). What is done stays; {left:,} entries are left. "
                "Run this again when the model is back."
            ) from None
        finally:
            await llm.aclose()

    async def _all(self, user: uuid.UUID | None, batch: int) -> None:
        model = llm.embedding_model()
        todo, withheld = await db.run(embedding.count_missing)
        self._say(f"{todo:,} entries of all users have no vector of {model.name}.")
        if withheld:
            self._say(f"{withheld:,} more get none: their users' policies keep them from {model.provider}.")
        done = dropped = 0
        closed: list[uuid.UUID] = []
        after = _FIRST
        while users := [user] if user else await db.run(embedding.users_to_embed, after):
            for each in users:
                try:
                    while (count := await embedding.embed_batch(each, batch)) is not None:
                        done += count
                        # New entries come meanwhile, with their vectors, so this may be fewer than it says.
                        self._say(f"{done:,} entries embedded, {max(todo - done, 0):,} left")
                    dropped += await db.run(embedding.delete_old_history_vectors, each)
                except NoSuchUser:
                    pass  # deleted meanwhile
                except (SealBroken, KeyUnavailable):
                    closed.append(each)
            if user:
                break
            after = users[-1]
        self._say(f"Done: {done:,} entries embedded, {dropped:,} old vectors of history dropped.")
        if closed:
            raise CommandError(
                f"The memories of {len(closed):,} users do not open: {', '.join(map(str, closed))}."
            )

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError("must be a whole number, and at least 1")
    return int(text)
