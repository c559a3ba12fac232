"""`manage.py settings_docs`: generate `.env.example` and `docs/settings.md` from adiuva/env_variables.py."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from adiuva.core.env import Section, Variable
from adiuva.env_variables import SECTIONS

ENV_EXAMPLE: Final = ".env.example"
SETTINGS_PAGE: Final = "docs/settings.md"

_WIDTH: Final = 118
_RULE_WIDTH: Final = 104
_GENERATED: Final = (
    "Generated from adiuva/env_variables.py by `manage.py settings_docs --write`; do not edit."
)
_LOOK_UP: Final = (
    "Adiuva reads its configuration from the environment, then from `.env` beside manage.py, then from what `make run` "
    "wrote into its state folder. Everything is optional for `make run` and `make test`. A value that does not have "
    "the declared form ends the process at its start, with the variable's name."
)


class Command(BaseCommand):
    help = "Compare .env.example and docs/settings.md with the declared variables, or rewrite them (--write)."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--write", action="store_true", help="write the files that differ")

    def handle(self, *args: Any, write: bool, **options: Any) -> None:
        stale = [path for path, content in files(settings.BASE_DIR).items() if _read(path) != content]
        if stale and not write:
            raise CommandError(
                f"{', '.join(path.name for path in stale)} differ: run `manage.py settings_docs --write`"
            )
        for path in stale:
            path.write_text(files(settings.BASE_DIR)[path], "utf-8")
            self.stdout.write(f"wrote {path.name}")
        if not stale:
            self.stdout.write("both files are up to date")


def files(folder: Path) -> dict[Path, str]:
    """Return the generated files below the project's folder, with their content."""
    return {folder / ENV_EXAMPLE: _env_example(), folder / SETTINGS_PAGE: _settings_page()}


def _read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _env_example() -> str:
    lines = [
        *_comment(f"{_LOOK_UP} Copy this file to `.env`; a value after `=` is the default."),
        f"# {_GENERATED}",
    ]
    for section in SECTIONS:
        if not section.internal:
            lines += ["", *_env_section(section)]
    return "\n".join([*lines, ""])


def _env_section(section: Section) -> Iterator[str]:
    yield f"# ── {section.title} ".ljust(_RULE_WIDTH, "─")
    if section.note:
        yield from _comment(section.note)
    for variable in section.variables:
        yield from _comment(f"{variable.meaning} {_form(variable)}".strip())
        yield f"#{variable.name}={_written(variable)}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _form(variable: Variable[Any]) -> str:
    """Return unit, bounds and a computed default as a last sentence."""
    parts = [part for part in (variable.unit, variable.bounds) if part]
    if variable.computed_default:
        parts.append(f"default: {variable.computed_default}")
    return f"({'; '.join(parts)})" if parts else ""


def _written(variable: Variable[Any]) -> str:
    """Return the default as an environment file has it; empty if it is computed."""
    match variable.default:
        case _ if variable.computed_default:
            return ""
        case bool(flag):
            return "1" if flag else "0"
        case float(number):
            return f"{number:g}"
        case list(words):
            return ",".join(words)
        case other:
            return str(other)


def _settings_page() -> str:
    parts = ["# Settings", _LOOK_UP, _GENERATED]
    for section in SECTIONS:
        parts += [f"## {section.title}", *([section.note] if section.note else [])]
        rows = [_row(variable) for variable in section.variables]
        parts.append(
            "\n".join(["| Variable | Type | Default | Meaning |", "| --- | --- | --- | --- |", *rows])
        )
    return "\n\n".join(parts) + "\n"


def _row(variable: Variable[Any]) -> str:
    form = ", ".join(part for part in (variable.type, variable.unit, variable.bounds) if part)
    default = variable.computed_default or (_written(variable) and f"`{_written(variable)}`") or "none"
    return f"| `{variable.name}` | {form} | {default} | {variable.meaning} |"
