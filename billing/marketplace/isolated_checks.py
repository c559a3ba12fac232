"""Checks a package in a process of its own, with limits on memory and time.

If anything ends that process, nothing passes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, Final

import orjson
import structlog

import billing
from adiuva.core.errors import Text
from adiuva.core.logging import log_failure
from billing.marketplace import checks
from billing.marketplace.checks import Report, Result
from billing.marketplace.findings import Finding
from billing.marketplace.manifest import BadManifest, parse_manifest
from billing.marketplace.package import MAX_PACKAGE_BYTES

log = structlog.get_logger(__name__)

MAX_SECONDS: Final = 60
_MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
TOO_MUCH: Final = Text("it takes too much time or memory to check")


class Unchecked(Exception):
    """The process could not be started, or answered with something other than a report."""


def check(package: IO[bytes]) -> Report:
    """Return the report of all checks on a package in a file (a real one, on disk).

    A package that ends its checker is refused by a finding. Raises Unchecked where the fault is ours.
    """
    package.seek(0)
    root = Path(billing.__file__).parent.parent
    try:
        done = subprocess.run(
            [sys.executable, "-m", "billing.marketplace.check_process"],
            stdin=package,
            capture_output=True,
            timeout=MAX_SECONDS,
            cwd=Path(os.sep).absolute(),
            env={"PYTHONPATH": str(root), "PYTHONUTF8": "1"},
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return refusal(TOO_MUCH)
    except OSError as error:
        raise Unchecked from error
    if done.returncode < 0 or b"MemoryError" in done.stderr[-200:]:  # a signal: its time was over
        return refusal(TOO_MUCH)
    if done.returncode or len(done.stdout) > _MAX_ANSWER_BYTES:
        raise Unchecked
    return _with_manifest_checks(_report(done.stdout))


def refusal(problem: str) -> Report:
    return Report(
        results={"structure": Result.FOUND}, findings=[Finding("structure", problem)], manifest=None
    )


def _report(answer: bytes) -> Report:
    """Check the process's answer, because a hostile package may have taken it over."""
    try:
        found: dict[str, Any] = orjson.loads(answer)
        manifest = found["manifest"]
        report = Report(
            manifest=parse_manifest(orjson.dumps(manifest)) if manifest is not None else None,
            sha256=str(found["sha256"]),
            size=int(found["size"]),
            results={str(name): Result(result) for name, result in found["results"].items()},
            findings=[Finding.of_body(body) for body in found["findings"]],
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, BadManifest) as error:
        log_failure("plugin_check.answer_unreadable", error, logger=log)
        raise Unchecked from None
    if report.size > MAX_PACKAGE_BYTES:
        raise Unchecked
    return report


def _with_manifest_checks(report: Report) -> Report:
    """Add the checks of other apps, which need rows and settings, and look at nothing but the manifest."""
    if report.manifest is not None:
        checks.check_manifest(report, but=report.results.keys())
    return report
