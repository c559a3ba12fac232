"""`manage.py forget_cursors`: after a database was restored, clients of the vault begin again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from adiuva.vault import changes, uploads


class Command(BaseCommand):
    help = (
        "After the main database was restored from a dump: positions that clients have in the changes of their records "
        "are of a time that the database does not know. They begin again, and delete nothing for it; so do uploads "
        "that were under way. Run it before anything else of Adiuva."
    )

    def handle(self, *_: object, **options: Any) -> None:
        self.stdout.write(f"Accounts whose clients begin again: {changes.forget_positions()}.")
        self.stdout.write(f"Uploads that begin again: {uploads.end_all()}.")
