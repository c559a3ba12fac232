"""`manage.py backup MAIN [KEYS]`: dump the main database and, where they are apart, the users' data keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from adiuva.accounts.key_store import KEYS_DATABASE, has_own_database
from adiuva.management import pg_programs


class Command(BaseCommand):
    help = (
        "Dump the main database into a new file and, if ADIUVA_KEYS_DATABASE_URL is set, the keys' database into "
        "another one, which is replaced. Everything may go on running. The key ring (ADIUVA_KEYS) is in neither."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("main", type=Path, help="the new file for the main database")
        parser.add_argument("keys", type=Path, nargs="?", help="the file for the keys, on another disk")

    def handle(self, *_: object, main: Path, keys: Path | None, **options: Any) -> None:
        check_places(keys)
        if main.exists():
            raise CommandError(f"{main} exists already")
        # The main one first. A key is committed before what it seals, so the later dump of the keys has the key of
        # every account in the earlier dump, except of accounts that were deleted between the two.
        parts = [_dump("default", main)]
        try:
            if keys:
                parts.append(_dump(KEYS_DATABASE, keys))
        except BaseException:
            parts[0].unlink(missing_ok=True)
            raise
        # Newer keys open older dumps, but older keys do not open newer dumps.
        for part, file in reversed(list(zip(parts, filter(None, (main, keys)), strict=True))):
            part.rename(file)
            _sync(file.parent)
            self.stdout.write(f"{file}: {file.stat().st_size:,} bytes")


def check_places(keys: Path | None) -> None:
    """Raise CommandError unless a file for the keys is given exactly if they are apart."""
    apart = has_own_database() and pg_programs.place_of(KEYS_DATABASE) != pg_programs.place_of("default")
    if apart and not keys:
        raise CommandError("The keys are in a database of their own: name a second file, for their dump.")
    if keys and not apart:
        raise CommandError("The keys are in the main database: name one file. See ADIUVA_KEYS_DATABASE_URL.")


def _dump(alias: str, file: Path) -> Path:
    """Dump into a file beside the target, readable by its owner alone, and read it back."""
    part = file.with_name(f"{file.name}.part")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
        part.chmod(0o600)
        pg_programs.dump(alias, part)
        pg_programs.check_dump(part)
        _sync(part)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CommandError(f"{part} cannot be written: {error.strerror}") from None
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
