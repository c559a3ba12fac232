"""Command line of the stack. It does not set Django up, because its settings need servers that are not running yet."""

from __future__ import annotations

import argparse
import sys

from django.core.exceptions import ImproperlyConfigured

from adiuva.embedded import parent_death
from adiuva.embedded.processes import StackError
from adiuva.embedded.stack import Stack
from adiuva.embedded.terminal import Terminal

DESCRIPTION = (
    "Start everything on this machine: PostgreSQL, Valkey and the offline model unless others are configured, "
    "then web, workers and beat, and a demo. Stays up until Ctrl-C."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--with-parent", action="store_true", help="end when the process that started this one ends"
    )


def main(arguments: list[str]) -> int:
    """Run the stack until it ends; return the exit code."""
    parser = argparse.ArgumentParser(prog="manage.py up", description=DESCRIPTION)
    add_arguments(parser)
    return run(with_parent=parser.parse_args(arguments).with_parent)


def run(*, with_parent: bool) -> int:
    """Run the stack with arguments that are parsed already."""
    if with_parent:
        parent_death.follow_parent()
    terminal = Terminal(sys.stdout)
    try:
        return Stack(terminal).run()
    except (StackError, OSError, ImproperlyConfigured) as error:
        terminal.end_bar()
        print(f"Adiuva cannot run: {error}", file=sys.stderr)  # noqa: T201
        return 1
