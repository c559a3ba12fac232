"""Texts that persuade people to do what the package itself could not: run this, switch that off, download first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from adiuva.core.errors import Text
from billing.marketplace.checks.text_files import line_of, text_of
from billing.marketplace.findings import Finding
from billing.marketplace.manifest import Manifest
from billing.marketplace.package import PackageFile

CHECK: Final = "install_texts"
_RULES: Final[dict[Text, tuple[str, ...]]] = {
    Text("it tells people to run commands from the internet"): (
        r"\b(?:curl|wget|iwr|irm|invoke-webrequest|invoke-restmethod)\b[^\n]{0,300}\|\s*(?:sudo\s+)?(?:ba|z|da|fi)?sh\b",
        r"\|\s*(?:iex|invoke-expression|python3?|node|perl)\b",
        r"\b(?:iex|invoke-expression)\b\s*[\(&$]",
        r"\b(?:ba|z)?sh\s+(?:-c\s+[\"']?\$\(|<\(\s*)(?:curl|wget)",
        r"\bbase64\s+(?:-d|-D|--decode)\b[^\n]{0,100}\|",
    ),
    Text("it tells people to run programs or commands"): (
        r"\b(?:powershell|pwsh)(?:\.exe)?\s+[-/]\w",
        r"\b(?:mshta|rundll32|osascript)\b",
        r"\bcertutil\b[^\n]{0,60}-(?:urlcache|decode)",
        r"\bchmod\s+(?:\+x|[0-7]{3,4})\b",
        r"\bxattr\s+-|\bspctl\s+--|\bsudo\s+\w",
        r"\b(?:pip3?|npm|brew)\s+(?:i|install)\b|\bnpx\s+\w",
        r"\b(?:open|paste|run|type)\b[^\n.]{0,60}\b(?:terminal|command prompt|powershell|run dialog)\b",
        r"\bwin(?:dows)?\s*(?:key)?\s*\+\s*r\b",
    ),
    Text("it tells people to switch off what protects them"): (
        r"\b(?:disable|deactivate|turn(?:ing)? off|switch(?:ing)? off|add an exclusion|whitelist)\b[^\n.]{0,60}"
        r"\b(?:anti-?virus|defender|firewall|gatekeeper|smartscreen|security)\b",
        r"--no-sandbox\b|--disable-web-security\b",
    ),
    Text("it tells people to download something else"): (
        r"\bdownload\b[^\n.]{0,100}\b(?:first|before (?:you )?(?:us|install|start)\w*|helper|driver|runtime|codec)\b",
        r"\b(?:archive|zip|unzip|extract)\b[^\n.]{0,60}\bpassword\b|\bpassword\b[^\n.]{0,40}\b(?:archive|zip)\b",
    ),
    Text("it sends people to a place where anybody can leave text"): (
        r"\b(?:pastebin\.com|hastebin\.com|rentry\.(?:co|org)|ghostbin\.\w+|paste\.(?:ee|rs)|dpaste\.\w+|glot\.io)\b",
        r"\b(?:0x0\.st|transfer\.sh|anonfiles?\.\w+|gofile\.io|file\.io|mega\.nz|telegra\.ph|controlc\.com)\b",
        r"\b(?:webhook\.site|requestbin\.\w+|ngrok(?:-free)?\.(?:io|app|dev)|trycloudflare\.com)\b",
    ),
    Text("it asks for what people must not give"): (
        r"\b(?:enter|paste|send|give|type|provide|share)\b[^\n.]{0,50}"
        r"\b(?:seed phrase|recovery (?:phrase|code)s?|private key|(?:master |account )?password|one-time code)\b",
    ),
}
_COMPILED: Final = {
    problem: re.compile("|".join(patterns), re.IGNORECASE) for problem, patterns in _RULES.items()
}


def look(_manifest: Manifest, file: PackageFile) -> Iterator[Finding]:
    yield from look_at(text_of(file), file.path)


def look_at(text: str, path: str) -> Iterator[Finding]:
    for problem, pattern in _COMPILED.items():
        if found := pattern.search(text):
            yield Finding(CHECK, problem, path, line_of(text, found.start()))
