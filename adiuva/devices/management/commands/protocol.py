"""`manage.py protocol`: write the socket's JSON Schema and TypeScript types into docs/."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from adiuva.devices import schema_export


class Command(BaseCommand):
    help = "Write the device socket's JSON Schema and TypeScript types into docs/."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        changed = schema_export.write(settings.BASE_DIR / "docs")
        for path in changed:
            self.stdout.write(f"wrote {path.name}")
        if not changed:
            self.stdout.write("docs/ is fresh")
