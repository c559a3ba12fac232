"""`manage.py restore MAIN [KEYS]`: fill empty databases from what `manage.py backup` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from adiuva.accounts.key_store import KEYS_DATABASE
from adiuva.management import pg_programs
from adiuva.management.commands.backup import check_places


class Command(BaseCommand):
    help = (
        "Fill empty databases from dumps that `manage.py backup` made. No other process of Adiuva may run. Afterwards "
        "run `manage.py migrate`, then `manage.py forget_cursors` and `manage.py rotate_keys`."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("main", type=Path, help="the dump of the main database")
        parser.add_argument("keys", type=Path, nargs="?", help="the newest dump of the keys")

    def handle(self, *_: object, main: Path, keys: Path | None, **options: Any) -> None:
        check_places(keys)
        work = [("default", main), *([(KEYS_DATABASE, keys)] if keys else [])]
        for _alias, file in work:
            pg_programs.check_dump(file)
        for alias, _file in work:
            if not pg_programs.is_empty(alias):
                raise CommandError(f"The database {pg_programs.place_of(alias)[-1]} is not empty.")
        for alias, file in work:
            pg_programs.restore(alias, file)
            self.stdout.write(f"{file} is in {pg_programs.place_of(alias)[-1]}.")
        self.stdout.write(
            "Now run `manage.py migrate`, then `manage.py forget_cursors` and `manage.py rotate_keys`."
        )
