"""The checks that every package goes through. They fail closed: a check that breaks lets nothing pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import islice
from typing import IO, Final

from adiuva.core.errors import Text
from billing.marketplace.checks import code, hosts, install_texts, invisible, kinds, names, secrets
from billing.marketplace.checks.text_files import TEXT, suffix_of
from billing.marketplace.findings import MAX_FINDINGS, Finding, Severity
from billing.marketplace.manifest import Manifest
from billing.marketplace.package import BadPackage, Package, PackageFile

# Nobody reviews more, and each check reads all of it.
MAX_TEXT_BYTES: Final = 8 * 1024 * 1024
# The most findings of one check about one file.
_MOST_OF_ONE: Final = 10

FileCheck = Callable[[Manifest, PackageFile], Iterator[Finding]]
ManifestCheck = Callable[[Manifest], Iterator[Finding]]

_FILE_CHECKS: Final[dict[str, FileCheck]] = {
    "kinds": kinds.look,
    "secrets": secrets.look,
    "invisible": invisible.look,
    "code": code.look,
    "hosts": hosts.look,
    "install_texts": install_texts.look,
}
_MANIFEST_CHECKS: Final[dict[str, ManifestCheck]] = {
    "names": names.look,
    "manifest_texts": names.look_at_texts,
}


class Result(StrEnum):
    PASSED = "passed"
    FOUND = "found"
    ERROR = "error"
    """The check itself has failed: it says nothing about the package, so the package is not published."""


@dataclass
class Report:
    """The findings of the checks. `manifest` is None if the package could not be opened."""

    manifest: Manifest | None = None
    sha256: str = ""
    size: int = 0
    results: dict[str, Result] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True if a person may review it: no check has failed, and none has found a problem that blocks."""
        return (
            self.manifest is not None
            and Result.ERROR not in self.results.values()
            and not any(finding.severity == Severity.BLOCKS for finding in self.findings)
        )

    def add(self, check: str, found: list[Finding]) -> None:
        if found and self.results.get(check) != Result.ERROR:
            self.results[check] = Result.FOUND
        # Findings that block are never left out for lack of room.
        room = max(0, MAX_FINDINGS - len(self.findings))
        blocking = [finding for finding in found if finding.severity == Severity.BLOCKS]
        noted = [finding for finding in found if finding.severity != Severity.BLOCKS]
        self.findings += (blocking + noted)[: max(room, min(1, len(blocking)))]


def add_manifest_check(name: str, check: ManifestCheck) -> None:
    """Let an app that stands above this one look at the part of a manifest that it understands."""
    _MANIFEST_CHECKS[name] = check


def check_package(file: IO[bytes]) -> Report:
    """Open a package and check all of it. Nothing in a package makes it raise."""
    report = Report(results=dict.fromkeys(("structure", *_MANIFEST_CHECKS, *_FILE_CHECKS), Result.PASSED))
    try:
        package = Package(file)
        report.sha256, report.size = package.sha256, package.size
        report.manifest = package.manifest
        check_manifest(report)
        text_bytes = 0
        for member in package.files():
            text_bytes += len(member.content) if suffix_of(member.path) in TEXT else 0
            if text_bytes > MAX_TEXT_BYTES:
                problem = Text("it has more than {most} MiB of text and code", most=MAX_TEXT_BYTES >> 20)
                raise BadPackage(Finding("structure", problem))
            for name, look_at in _FILE_CHECKS.items():
                _run(report, name, partial(look_at, package.manifest, member))
    except BadPackage as error:
        report.manifest = None
        report.add("structure", list(error.findings))
    return report


def check_manifest(report: Report, *, but: Collection[str] = ()) -> None:
    """Run the checks of a report's manifest, except those named, which were run elsewhere."""
    assert report.manifest is not None
    for name, look in _MANIFEST_CHECKS.items():
        if name not in but:
            report.results.setdefault(name, Result.PASSED)
            _run(report, name, partial(look, report.manifest))


def _run(report: Report, name: str, look: Callable[[], Iterator[Finding]]) -> None:
    try:
        report.add(name, list(islice(look(), _MOST_OF_ONE)))
    except Exception as error:
        # Its imports take 40 % of the time in which a process that checks a package starts.
        from adiuva.core.logging import log_failure

        log_failure("plugin_check.failed", error, check=name)
        report.results[name] = Result.ERROR
