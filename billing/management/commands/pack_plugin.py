"""`manage.py pack_plugin`: make a plugin's package from its folder, and print the findings of the checks."""

from __future__ import annotations

import io
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from billing.marketplace.build import NotPacked, build_package, hidden_files
from billing.marketplace.checks import check_package
from billing.marketplace.findings import Finding
from billing.marketplace.manifest import BadManifest


class Command(BaseCommand):
    help = (
        "Pack a plugin's folder into a file that can be submitted, and check it as the marketplace does. The list of "
        "files in its manifest.json is made here. The same files always make the same package."
    )
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path)
        parser.add_argument(
            "--output", type=Path, help="the package; otherwise <id>-<version>.zip beside the folder"
        )

    def handle(self, *_: Any, folder: Path, output: Path | None, **__: Any) -> None:
        package = io.BytesIO()
        try:
            manifest = build_package(folder, package)
        except NotPacked as error:
            raise CommandError(f"{error}.") from None
        except BadManifest as error:
            raise CommandError("manifest.json: " + "\nmanifest.json: ".join(error.problems)) from None
        except OSError as error:
            raise CommandError(f"{folder} cannot be read: {error.strerror}.") from None
        report = check_package(package)
        for path in hidden_files(folder):
            self.stdout.write(f"{path}: left out, since it is hidden")
        for finding in report.findings:
            self.stdout.write(_line(finding))
        if not report.passed:
            raise CommandError("The marketplace would refuse it: nothing was written.")
        output = output or folder.resolve().parent / f"{manifest.id}-{manifest.version}.zip"
        output.write_bytes(package.getvalue())
        self.stdout.write(f"{output}: {report.size:,} bytes, SHA-256 {report.sha256}")


def _line(finding: Finding) -> str:
    place = f"{finding.path}:{finding.line}" if finding.line else finding.path
    return ": ".join(part for part in (place, finding.severity, finding.problem) if part)
