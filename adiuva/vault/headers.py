"""Parsers of request headers: preconditions, backups, tus."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Final

from adiuva.core.errors import Text
from adiuva.vault import checksums
from adiuva.vault.backups import MAX_MS, Description
from adiuva.vault.errors import InvalidHeader, LengthRequired, TusVersion
from adiuva.vault.receiving import PartChecksum
from adiuva.vault.records import Precondition

TUS: Final = "1.0.0"
_ETAGS: Final = re.compile(r'"[0-9a-fA-F]{64}"(?:\s*,\s*"[0-9a-fA-F]{64}")*')


def precondition(headers: Mapping[str, str]) -> Precondition:
    """Return the precondition of If-Match with ETags of ours or `*`, or of `If-None-Match: *`. Raises Invalid for
    anything else."""
    match, none_match = headers.get("If-Match", "").strip(), headers.get("If-None-Match", "").strip()
    if none_match and (none_match != "*" or match):
        raise InvalidHeader("Only `*`, and not together with If-Match.", name="If-None-Match")
    if none_match:
        return Precondition(is_absent=True)
    if match == "*":
        return Precondition(exists=True)
    if not match:
        return Precondition()
    if not _ETAGS.fullmatch(match):
        raise InvalidHeader("A checksum in quotes, several with commas between, or `*`.", name="If-Match")
    return Precondition(
        matches=frozenset(bytes.fromhex(each) for each in re.findall(r"[0-9a-fA-F]{64}", match))
    )


def whole_number(headers: Mapping[str, str], name: str, *, most: int, default: int | None = None) -> int:
    """Parse a whole number. Raises Invalid."""
    raw = headers.get(name, "").strip()
    if not raw and default is not None:
        return default
    if not (raw.isascii() and raw.isdigit() and len(raw) <= 19 and int(raw) <= most):
        raise InvalidHeader(Text("Not a whole number from {least} to {most}.", least=0, most=most), name=name)
    return int(raw)


def backup(headers: Mapping[str, str]) -> Description:
    """Return the description of a backup. Raises Invalid or InvalidChecksum."""
    base = whole_number(headers, "X-Backup-Base", most=MAX_MS, default=-1)
    return Description(
        version=whole_number(headers, "X-Backup-Version", most=2**31 - 1),
        timestamp_ms=whole_number(headers, "X-Backup-Timestamp", most=MAX_MS),
        checksum=checksums.parse(headers.get("X-Backup-Checksum", "").strip(), "X-Backup-Checksum"),
        chunk_count=whole_number(headers, "X-Backup-Chunks", most=2**31 - 1, default=1),
        base_ms=base if base >= 0 else None,
    )


def require_tus(headers: Mapping[str, str]) -> None:
    """Raise TusVersion unless the client speaks our version of tus."""
    if headers.get("Tus-Resumable") != TUS:
        raise TusVersion


def upload_length(headers: Mapping[str, str]) -> int:
    """Return the length of an upload. Raises LengthRequired or Invalid."""
    if "Upload-Length" not in headers:
        raise LengthRequired
    return whole_number(headers, "Upload-Length", most=2**63 - 1)


def upload_purpose(headers: Mapping[str, str]) -> tuple[str, str]:
    """Return the purpose of an upload, by the key `purpose` of its metadata (storage by default), and the metadata as
    it stands.

    Raises Invalid.
    """
    metadata = headers.get("Upload-Metadata", "").strip()
    purpose = "storage"
    if len(metadata) > 2000:
        raise InvalidHeader("At most 2,000 characters.", name="Upload-Metadata")
    for pair in filter(None, (part.strip() for part in metadata.split(","))):
        key, _, encoded = pair.partition(" ")
        try:
            value = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            raise InvalidHeader("Keys, each with a value in base64.", name="Upload-Metadata") from None
        if key == "purpose":
            purpose = value.decode("utf-8", "replace")
    if purpose not in ("storage", "backup"):
        raise InvalidHeader("The purpose is storage or backup.", name="Upload-Metadata")
    return purpose, metadata


def part_checksum(headers: Mapping[str, str]) -> PartChecksum | None:
    """Return the checksum of a part. Raises Invalid."""
    if "Upload-Checksum" not in headers:
        return None
    found = PartChecksum.parse(headers["Upload-Checksum"].strip())
    if found is None:
        raise InvalidHeader("sha1 or sha256, and a digest in base64.", name="Upload-Checksum")
    return found
