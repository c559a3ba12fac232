"""Findings of the checks of a package."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from adiuva.core.errors import packed, unpacked

# The most findings of a package, so that one that is wrong in every file is not described file by file.
MAX_FINDINGS: Final = 100


class Severity(StrEnum):
    BLOCKS = "blocks"
    """The version is not published."""

    REVIEW = "review"
    """A reviewer must look at this place."""


@dataclass(frozen=True)
class Finding:
    """One problem: its file, its line (from 1; 0 if it is in no line), and a description.

    It never quotes a secret.
    """

    check: str
    problem: str
    path: str = ""
    line: int = 0
    severity: Severity = Severity.BLOCKS

    def body(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "severity": self.severity.value,
            "path": self.path,
            "line": self.line,
            "problem": packed(self.problem),
        }

    @classmethod
    def of_body(cls, body: dict[str, Any]) -> Finding:
        return cls(
            body["check"], unpacked(body["problem"]), body["path"], body["line"], Severity(body["severity"])
        )
