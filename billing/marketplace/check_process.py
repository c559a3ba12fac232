"""The process that checks one package: `python -m billing.marketplace.check_process < package.zip`.

It limits its own memory, time and files before it reads the first byte, and answers with a report in JSON. It runs
without Django: it has neither settings, nor the database, nor an environment.
"""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from typing import Any, Final

import orjson

from billing.marketplace.checks import Report, check_package

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MAX_CPU_SECONDS: Final = 30
MAX_MEMORY_BYTES: Final = 1024 * 1024 * 1024
_MAX_FILES: Final = 64


def main() -> None:
    for name, most in (
        ("RLIMIT_AS", MAX_MEMORY_BYTES),
        ("RLIMIT_CPU", MAX_CPU_SECONDS),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_NOFILE", _MAX_FILES),
        ("RLIMIT_CORE", 0),
    ):
        with suppress(ValueError, OSError, AttributeError):  # not every system has all of them
            resource.setrlimit(getattr(resource, name), (most, most))
    report = check_package(io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False)))
    sys.stdout.buffer.write(orjson.dumps(as_answer(report)))


def as_answer(report: Report) -> dict[str, Any]:
    return {
        "manifest": report.manifest.model_dump(mode="json") if report.manifest is not None else None,
        "sha256": report.sha256,
        "size": report.size,
        "results": {name: result.value for name, result in report.results.items()},
        "findings": [finding.body() for finding in report.findings],
    }


if __name__ == "__main__":
    main()
