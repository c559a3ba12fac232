"""`manage.py protocol`: write what is published of the socket: schema, types, the tables of docs/protocol.md."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from adiuva.devices import protocol_schema


class Command(BaseCommand):
    help = "Write the device socket's JSON Schema, TypeScript types and the tables of docs/protocol.md."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        changed = protocol_schema.write(settings.BASE_DIR)
        for path in changed:
            self.stdout.write(f"wrote {path.name}")
        if not changed:
            self.stdout.write("all is fresh")
