"""Helpers of vault tests: sealed bytes with their checksum, requests of clients, and accounts that may store."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Callable
from typing import Any

import httpx

from tests.factories import Person, somebody


def payer() -> Person:
    """Somebody whose plan has storage."""
    return somebody(tier="pro")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sealed(size: int = 100) -> bytes:
    return os.urandom(size)


def content(data: bytes, **more: Any) -> dict[str, Any]:
    return {"blob": base64.b64encode(data).decode(), "checksum": sha(data), **more}


def used(rest: httpx.Client, kind: str = "storage") -> int:
    found: int = rest.get("/storage/usage").json()[kind]["used"]
    return found


def reserved(rest: httpx.Client, kind: str = "storage") -> int:
    found: int = rest.get("/storage/usage").json()[kind]["reserved"]
    return found


def eventually(holds: Callable[[], bool], within_s: float = 60) -> None:
    """Wait until it holds, by other processes' doing."""
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


TUS = {"Tus-Resumable": "1.0.0"}


def begin(rest: httpx.Client, length: int, purpose: str = "storage") -> str:
    """The path of a new upload."""
    metadata = f"purpose {base64.b64encode(purpose.encode()).decode()}"
    made = rest.post(
        "/storage/uploads", headers={**TUS, "Upload-Length": str(length), "Upload-Metadata": metadata}
    )
    assert made.status_code == 201, made.text
    place: str = made.headers["Location"]
    return "/storage/uploads/" + place.rpartition("/")[2]


def send(rest: httpx.Client, upload: str, offset: int, data: Any, **headers: str) -> httpx.Response:
    given = {**TUS, "Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
    return rest.patch(upload, content=data, headers={**given, **headers})


def backup_headers(data: bytes, at: int, **more: str) -> dict[str, str]:
    return {
        "X-Backup-Version": "1",
        "X-Backup-Timestamp": str(at),
        "X-Backup-Checksum": sha(data),
        **more,
    }
