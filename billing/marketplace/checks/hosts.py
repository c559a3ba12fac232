"""Addresses on the internet: code may name only the hosts that the manifest declares."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from adiuva.core.errors import Text
from billing.marketplace.checks.text_files import PROSE, line_of, suffix_of, text_of
from billing.marketplace.findings import Finding, Severity
from billing.marketplace.manifest import Manifest
from billing.marketplace.package import PackageFile

CHECK: Final = "hosts"
# Names of XML languages and schemas look like addresses; nothing is fetched from there.
_NAMESPACES: Final = frozenset({"www.w3.org", "json-schema.org", "schemas.microsoft.com", "purl.org"})
# The pages behind them change after the review.
_SHORTENERS: Final = frozenset(
    "bit.ly cutt.ly goo.gl is.gd ow.ly rb.gy rebrand.ly shorturl.at t.co t.ly tiny.cc tinyurl.com v.gd".split()  # noqa: SIM905
)
_ADDRESS: Final = re.compile(
    r"\b(?:https?|wss?|ftp|file)\s*:\s*//[^\s\"'`<>)\]}\\]{1,2000}"
    r"|(?<=[\"'`(=])//(?:[\w-]{1,63}\.)+[a-z]{2,63}",  # takes the scheme of the page
    re.IGNORECASE,
)
# A numeric address, also without a scheme.
_NUMBERS: Final = re.compile(
    r"//(?:\d{1,3}(?:\.\d{1,3}){3}|0x[0-9a-f]{8}|\d{8,10}|\[[0-9a-f:.]+\])(?=[:/\"'`\s]|$)", re.I
)


def look(manifest: Manifest, file: PackageFile) -> Iterator[Finding]:
    """Yield the findings that block first: only the first findings of a file are kept."""
    text = text_of(file)
    allowed = {*manifest.hosts, *_NAMESPACES}
    if manifest.homepage:
        allowed.add(urlsplit(manifest.homepage).hostname or "")
    is_prose = suffix_of(file.path) in PROSE
    if found_numbers := _NUMBERS.search(text):
        line = line_of(text, found_numbers.start())
        yield Finding(CHECK, Text("it names a computer by its number"), file.path, line)
    found_at: dict[str, int] = {}
    for found in _ADDRESS.finditer(text):
        found_at.setdefault(_host_of(re.sub(r"\s", "", found.group())), found.start())
    for host in sorted(found_at.keys() - allowed, key=lambda host: (not _is_hidden(host), found_at[host])):
        if _is_hidden(host):
            problem = Text("it hides where an address leads: {host}", host=host[:100])
            severity = Severity.BLOCKS
        else:
            problem = Text("it names a host that the manifest does not: {host}", host=host[:100])
            # People may read of other places in a text; code may not go there.
            severity = Severity.REVIEW if is_prose else Severity.BLOCKS
        yield Finding(CHECK, problem, file.path, line_of(text, found_at[host]), severity)


def _host_of(address: str) -> str:
    """Return the host of an address; the address itself if it has none that can be read."""
    try:
        return (urlsplit(address).hostname or address).rstrip(".").lower()
    except ValueError:
        return address.lower()


def _is_hidden(host: str) -> bool:
    return host in _SHORTENERS or host.startswith("xn--") or ".xn--" in host or not host.isascii()
