"""Make a package from a folder, always with the same bytes for the same files."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from adiuva.core.errors import Text
from billing.marketplace.manifest import MANIFEST_NAME, BadManifest, Manifest, parse_json, parse_manifest

# Times of files would change the package's hash, without telling anybody anything.
_TIME: Final = (1980, 1, 1, 0, 0, 0)
_FILE_MODE: Final = 0o100644 << 16


class NotPacked(ValueError):
    """Something in the folder keeps it from being packed. The message says what."""


def hidden_files(folder: Path) -> list[str]:
    """Return the paths of the files that are left out."""
    return [path for path, is_hidden in _files(folder) if is_hidden]


def _files(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield each file's path below the folder, and whether it is hidden. Raises NotPacked."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if path.is_symlink() and not is_hidden:
            # A link may lead to anything on this machine.
            raise NotPacked(f"{name.as_posix()} is a link: put the file itself there")
        if path.is_file():
            yield name.as_posix(), is_hidden


def build_package(folder: Path, target: IO[bytes]) -> Manifest:
    """Pack all files of a folder except hidden ones. Its manifest.json needs no `files`: they are listed here.

    Raises NotPacked, BadManifest, or OSError.
    """
    contents = {path: (folder / path).read_bytes() for path, is_hidden in _files(folder) if not is_hidden}
    if MANIFEST_NAME not in contents:
        raise NotPacked(f"there is no {MANIFEST_NAME} in {folder}")
    given = parse_json(contents.pop(MANIFEST_NAME))
    if not isinstance(given, dict):
        raise BadManifest(Text("it is not JSON in UTF-8"))
    given["files"] = {path: hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    manifest = json.dumps(given, indent=2, ensure_ascii=False).encode()
    parsed = parse_manifest(manifest)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in {MANIFEST_NAME: manifest, **contents}.items():
            info = zipfile.ZipInfo(path, _TIME)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, _FILE_MODE
            archive.writestr(info, content)
    return parsed
