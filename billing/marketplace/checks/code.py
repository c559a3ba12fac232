"""Code that nobody can review: it is made, unpacked or fetched when it runs, or leaves the client's own runtime."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from adiuva.core.errors import Text
from billing.marketplace.checks.text_files import CODE, MARKUP, line_of, suffix_of, text_of
from billing.marketplace.findings import Finding, Severity
from billing.marketplace.manifest import Manifest
from billing.marketplace.package import PackageFile

CHECK: Final = "code"
_BLOCKING: Final = {
    Text("it makes code out of text"): r"\beval\s*\(|\bnew\s+Function\s*\(|\bFunction\s*\(\s*['\"`]|"
    r"\bset(?:Timeout|Interval)\s*\(\s*['\"`]|\[\s*['\"]constructor['\"]\s*\]",
    Text(
        "it starts programs, or loads modules from outside"
    ): r"\bchild_process\b|\bprocess\.binding\b|\bexecFile\b|"
    r"\bimport\s*\(\s*(?!['\"]\./)|\bimportScripts\s*\(|\brequire\s*\(\s*(?!['\"]\./)|\bWebAssembly\b",
    Text(
        "it has text that is encoded so that nobody can read it"
    ): r"(?<![A-Za-z0-9+/,])[A-Za-z0-9+/]{240,}={0,2}|"
    r"(?:\\x[0-9a-fA-F]{2}){24,}|(?:\\u\{?[0-9a-fA-F]{4,6}\}?){24,}|(?:\b\d{1,3}\s*,\s*){120,}|"
    r"(?:0x[0-9a-fA-F]{1,8}\s*,\s*){60,}",
}
_IN_MARKUP: Final = {
    Text("it has code in it"): r"<\s*script\b|\bon[a-z]{3,20}\s*=\s*['\"]|javascript\s*:|<\s*foreignObject\b|"
    r"<\s*(?:iframe|object|embed)\b|\bexpression\s*\(|@import\b|\bbehavior\s*:|-moz-binding",
}
_MINIFIED_LINE: Final = 5_000


def _compiled(rules: Mapping[Text, str]) -> dict[str, re.Pattern[str]]:
    return {problem: re.compile(pattern) for problem, pattern in rules.items()}


_CODE_RULES: Final = _compiled(_BLOCKING)
_MARKUP_RULES: Final = {
    problem: re.compile(pattern, re.IGNORECASE) for problem, pattern in _IN_MARKUP.items()
}


def look(_manifest: Manifest, file: PackageFile) -> Iterator[Finding]:
    suffix, text = suffix_of(file.path), text_of(file)
    rules = _CODE_RULES if suffix in CODE else _MARKUP_RULES if suffix in MARKUP else {}
    for problem, pattern in rules.items():
        if found := pattern.search(text):
            yield Finding(CHECK, problem, file.path, line_of(text, found.start()))
    if suffix in CODE and max(map(len, text.split("\n"))) > _MINIFIED_LINE:
        yield Finding(CHECK, Text("it is minified: bring the source"), file.path, severity=Severity.REVIEW)
