"""`manage.py reembed`: compute vectors of the configured embedding model for all entries."""

from __future__ import annotations

import asyncio
import uuid
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError, CommandParser

from adiuva import llm
from adiuva.accounts.keys import KeyUnavailable, NoSuchUser
from adiuva.core import db
from memory import entry_embedding

_FIRST: Final = uuid.UUID(int=0)
_HELP = """\
Compute a vector of the configured embedding model (ADIUVA_EMBEDDING_MODEL) for every memory entry, user by user.

Run it after changing the model, while the server runs. It may be interrupted at any time and started again: until an
entry has its new vector it is found by its words. Vectors of different models are never compared.
"""


class Command(BaseCommand):
    help = _HELP

    def create_parser(self, prog_name: str, subcommand: str, **options: Any) -> CommandParser:
        return super().create_parser(
            prog_name, subcommand, formatter_class=RawDescriptionHelpFormatter, **options
        )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--user", type=uuid.UUID, help="id of the only user to embed entries of")
        parser.add_argument(
            "--batch", type=_positive, default=64, help="entries per request to the model (default: 64)"
        )

    def handle(self, *_: object, user: uuid.UUID | None, batch: int, **options: Any) -> None:
        asyncio.run(self._embed_and_close(user, batch))

    async def _embed_and_close(self, user: uuid.UUID | None, batch: int) -> None:
        try:
            await self._embed_all(user, batch)
        except llm.ModelError as error:
            left, _ = await db.run(entry_embedding.count_missing)
            raise CommandError(
                f"The embedding model failed ({error.code}). Vectors computed so far are kept; {left:,} are left. "
                "Run this command again when the model is available."
            ) from None
        finally:
            await llm.aclose()

    async def _embed_all(self, user: uuid.UUID | None, batch: int) -> None:
        model = llm.embedding_model()
        todo, withheld = await db.run(entry_embedding.count_missing)
        self._say(f"{todo:,} entries of all users have no vector of {model.name}.")
        if withheld:
            self._say(
                f"{withheld:,} more get none: their users' policies withhold them from {model.provider}."
            )
        done = 0
        unreadable: list[uuid.UUID] = []
        after = _FIRST
        while users := [user] if user else await db.run(entry_embedding.users_to_embed, after):
            for user_id in users:
                broken: set[uuid.UUID] = set()
                try:
                    while (
                        count := await entry_embedding.embed_batch(user_id, batch, broken=broken)
                    ) is not None:
                        done += count
                        # Entries added meanwhile have their vectors already, so fewer may be left than this says.
                        self._say(f"{done:,} entries embedded, {max(todo - done, 0):,} left")
                except NoSuchUser:
                    pass  # the account was deleted meanwhile
                except KeyUnavailable:
                    unreadable.append(user_id)
                if broken:
                    unreadable.append(user_id)
            if user:
                break
            after = users[-1]
        self._say(f"Done: {done:,} entries embedded.")
        if unreadable:
            raise CommandError(
                f"Entries of {len(unreadable):,} users could not be unsealed: {', '.join(map(str, unreadable))}."
            )

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError("must be a whole number, and at least 1")
    return int(text)
