"""Helpers that the parts of bench.vault share: sizes and requests."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
from datetime import timedelta
from typing import Any, Final

MIB: Final = 1024 * 1024
FULL: Final = "--full" in sys.argv
SIZE: Final = 2048 * MIB if FULL else 192 * MIB
KILLS: Final = 20 if FULL else 4
OPERATIONS: Final = 10_000 if FULL else 400
MOST_S: Final = int(sys.argv[sys.argv.index("--seconds") + 1]) if "--seconds" in sys.argv else 3600
WRITERS: Final = 50 if FULL else 12
BLOCK: Final = os.urandom(MIB)
TUS: Final = {"Tus-Resumable": "1.0.0"}


def backup_headers(digest: str, size: int, at: int) -> dict[str, str]:
    return {
        "X-Backup-Version": "1",
        "X-Backup-Timestamp": str(at),
        "X-Backup-Checksum": digest,
        "Content-Length": str(size),
    }


def content(raw: bytes) -> dict[str, Any]:
    return {"blob": base64.b64encode(raw).decode(), "checksum": hashlib.sha256(raw).hexdigest()}


def time_passes() -> None:
    """Leases of killed processes run out."""
    from django.db.models.functions import Now

    from adiuva.vault.models import Upload

    Upload.objects.filter(lease_until__isnull=False).update(lease_until=Now() - timedelta(seconds=1))
