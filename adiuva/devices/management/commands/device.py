"""`manage.py device`, so that Django lists it. manage.py runs adiuva.devices.client.program without Django."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from adiuva.devices.client import program
from adiuva.devices.client.errors import DeviceError


class Command(BaseCommand):
    help = program.DESCRIPTION
    # A device needs no settings of a server, so no checks run.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        program.add_arguments(parser)

    def handle(self, *_: object, **options: Any) -> None:
        try:
            program.Program(self.stdout.write).run(options)
        except DeviceError as error:
            raise CommandError(error.message, returncode=1) from error
