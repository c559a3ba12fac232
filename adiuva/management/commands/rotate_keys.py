"""`manage.py rotate_keys`: wrap all users' data keys with the ring's newest key, while everything runs."""

from __future__ import annotations

from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from collections import Counter
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from adiuva.accounts import key_maintenance, key_store
from adiuva.accounts.models import UserKey

_HELP = """\
Wrap all users' data keys with the newest key of the ring, ADIUVA_KEYS.

The data that they seal does not change, so web and workers keep running. The command may be stopped or killed at any
time, started again, and run several times at once.

To introduce a new key without failing requests, in this order:
  1. Put it at the END of ADIUVA_KEYS everywhere, and restart all processes: all can use it to open, none to wrap.
  2. Move it to the FRONT everywhere, and restart all processes: new keys are wrapped with it.
  3. Run rotate_keys. It says which keys of the ring are no longer needed.
  4. Remove those everywhere, and restart all processes.
A process without the newest key can read neither the data of users whose data key it wraps, nor what other processes
send it over Redis. Such messages are in transit for less than a second and are not stored, so nothing in Redis needs
an old key.

Keep an old key as long as you keep backups that need it: of the keys' database, or of the main one if there is no
separate keys' database.

If ADIUVA_KEYS_DATABASE_URL is set, the command also moves data keys that are still in the main database, and compares
accounts and keys. Run it after you have set that, and after either database was restored from a backup.
"""


class Command(BaseCommand):
    help = _HELP

    def create_parser(self, prog_name: str, subcommand: str, **options: Any) -> CommandParser:
        return super().create_parser(
            prog_name, subcommand, formatter_class=RawDescriptionHelpFormatter, **options
        )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--batch", type=_positive, default=500, help="keys a transaction (default: 500)")
        parser.add_argument(
            "--shred-orphans",
            action="store_true",
            help="permanently destroy keys whose account is not in the main database. Use it when a restored backup of "
            "the keys brought back those of deleted accounts; never while the main database is itself an older backup",
        )

    def handle(self, *_: object, batch: int, shred_orphans: bool, **options: Any) -> None:
        if not key_store.has_own_database() and UserKey.objects.filter(ring_key=UserKey.SEPARATE).exists():
            raise CommandError("The keys are in a database of their own: set ADIUVA_KEYS_DATABASE_URL.")
        if moved := key_maintenance.move_to_own_database(batch):
            self.stdout.write(f"Moved {moved:,} data keys into their own database.")
        broken = self._rotate(batch)
        wrapped = key_maintenance.count_by_ring_key()
        problems = [*_problems(wrapped, broken), *self._audit(shred_orphans)]
        self._conclude(wrapped)
        if problems:
            raise CommandError(" ".join(problems))

    def _rotate(self, batch: int) -> int:
        newest, before = settings.KEY_RING.newest, key_maintenance.count_by_ring_key()
        self.stdout.write(_table(before))
        left, done, broken = before.total() - before[newest], 0, set()
        for each in key_maintenance.rewrap(batch):
            done += each.done
            broken.update(each.skipped)
            # Other processes may rotate too, so there may be fewer.
            self.stdout.write(f"{done:,} wrapped with {newest}, {max(left - done, 0):,} left")
            self.stdout.flush()
        return len(broken)

    def _audit(self, shred_orphans: bool) -> list[str]:
        found = key_maintenance.audit()
        problems = []
        if found.lost:
            for user_id in found.lost:
                self.stdout.write(f"without its key: account {user_id}")
            problems.append(
                f"{len(found.lost):,} accounts have lost their key, and nothing opens what it sealed. Either they were "
                "deleted and a backup of the main database brought them back: delete them again. Or the keys' "
                "database is not the one it was: bring back its newest backup."
            )
        if found.orphans and shred_orphans:
            self.stdout.write(
                f"Destroyed {key_maintenance.shred_orphans(found.orphans):,} keys without an account."
            )
        elif found.orphans:
            self.stdout.write(f"{len(found.orphans):,} keys have no account; see --shred-orphans.")
        if found.doubled:
            problems.append(
                f"{found.doubled:,} accounts have two data keys, one in each database; neither was changed."
            )
        return problems

    def _conclude(self, wrapped: Counter[str]) -> None:
        ring = settings.KEY_RING
        self.stdout.write(_table(wrapped))
        if unused := [key_id for key_id in ring.ids if key_id != ring.newest and not wrapped[key_id]]:
            self.stdout.write(
                f"No data key needs {', '.join(unused)} any more: once all processes run with {ring.newest} in "
                "front, this may be taken out of ADIUVA_KEYS. Backups from before still need it."
            )


def _problems(wrapped: Counter[str], broken: int) -> list[str]:
    ring = settings.KEY_RING
    found = [
        f"{count:,} data keys are wrapped with {key_id}, which is not in ADIUVA_KEYS: bring that key back."
        for key_id, count in sorted(wrapped.items())
        if key_id not in ring.ids
    ]
    if broken:
        found.append(
            f"{broken:,} data keys do not open with the key of the ring that they name; the log says whose. "
            "Is it another key under the same name?"
        )
    return found


def _table(wrapped: Counter[str]) -> str:
    ring = settings.KEY_RING
    names = [*ring.ids, *sorted(set(wrapped) - set(ring.ids))]
    return "Data keys by ring key: " + ", ".join(f"{name} {wrapped[name]:,}" for name in names)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError("must be a whole number, and at least 1")
    return int(text)
