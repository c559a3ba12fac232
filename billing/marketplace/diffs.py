"""The difference between two packages, for the reviewer of the newer one. Both passed the checks when they came."""

from __future__ import annotations

import difflib
import tempfile
from dataclasses import dataclass, field
from typing import Final

from adiuva.object_store.store import store
from billing.marketplace.checks.text_files import text_of
from billing.marketplace.manifest import MANIFEST_NAME
from billing.marketplace.models import PluginVersion
from billing.marketplace.package import Package, PackageFile

MAX_LINES: Final = 5_000
_MAX_LINE: Final = 500


@dataclass
class Diff:
    """The difference. `lines` in the form of `diff -u`; `cut` if there were more. `files` that are no text, with what
    became of them.
    """

    against: str = ""
    new_permissions: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    cut: bool = False


def last_approved(version: PluginVersion) -> PluginVersion | None:
    """Return the version that was approved before it."""
    rows = PluginVersion.objects.filter(plugin=version.plugin_id, state__in=PluginVersion.SIGNED)
    return rows.exclude(pk=version.pk).order_by("-reviewed_at").first()


def diff(version: PluginVersion) -> Diff:
    """Compare with the last approved version, if any. Raises BadPackage, ObjectMissing, StorageAway."""
    before = last_approved(version)
    old = _files(before) if before is not None else {}
    found = Diff(against=before.version if before is not None else "")
    found.new_permissions = sorted(
        set(version.permissions) - set(before.permissions if before is not None else ())
    )
    new = _files(version)
    for path in sorted(old.keys() | new.keys()):
        _compare(found, path, old.get(path), new.get(path))
    found.cut = len(found.lines) > MAX_LINES
    del found.lines[MAX_LINES:]
    return found


def _compare(found: Diff, path: str, old: PackageFile | None, new: PackageFile | None) -> None:
    if old is not None and new is not None and old.content == new.content:
        return
    texts = [text_of(each) if each is not None else "" for each in (old, new)]
    if not any(texts):
        what = "removed" if new is None else f"{'changed' if old else 'added'}, {len(new.content):,} bytes"
        found.files.append(f"{path}: {what}")
        return
    if len(found.lines) > MAX_LINES:
        return
    lines = difflib.unified_diff(
        texts[0].splitlines(),
        texts[1].splitlines(),
        path if old is not None else "/dev/null",
        path if new is not None else "/dev/null",
        lineterm="",
    )
    for line in lines:
        found.lines.append(line[:_MAX_LINE])
        if len(found.lines) > MAX_LINES:
            return


def _files(version: PluginVersion) -> dict[str, PackageFile]:
    with tempfile.TemporaryFile() as file:
        for piece in store().read(version.object, 0, version.size):
            file.write(piece)
        package = Package(file)
        found = {each.path: each for each in package.files()}
        raw = package.manifest.model_dump_json(indent=2, exclude={"files"}).encode()
    return {**found, MANIFEST_NAME: PackageFile(MANIFEST_NAME, raw)}
