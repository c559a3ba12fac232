"""`manage.py up`, so that Django lists it. manage.py calls adiuva.embedded.up directly, without loading settings."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from adiuva.embedded import up


class Command(BaseCommand):
    help = up.DESCRIPTION
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        up.add_arguments(parser)

    def handle(self, *args: Any, with_parent: bool, **options: Any) -> None:
        sys.exit(up.run(with_parent=with_parent))
