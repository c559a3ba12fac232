"""The manifest's own words: no name that speaks for us, and nothing in its texts that is not allowed in files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from adiuva.core.errors import Text
from billing.marketplace.checks import install_texts, invisible
from billing.marketplace.findings import Finding
from billing.marketplace.manifest import MANIFEST_NAME, Manifest
from billing.marketplace.names import is_reserved

CHECK: Final = "names"


def look(manifest: Manifest) -> Iterator[Finding]:
    """Check the manifest's names and texts. Creating a plugin checks its names against those in the database."""
    for name in (manifest.id, manifest.name):
        if is_reserved(name):
            yield Finding(CHECK, Text("this name speaks for Adiuva"), MANIFEST_NAME)
            return


def look_at_texts(manifest: Manifest) -> Iterator[Finding]:
    texts = [manifest.summary, manifest.license, manifest.name]
    if manifest.agent is not None:
        texts += [manifest.agent.name, manifest.agent.prompt]
    for text in texts:
        if invisible.HIDDEN.search(text.replace("\n", " ")):
            yield Finding(
                "manifest_texts", Text("there are characters in it that are not seen"), MANIFEST_NAME
            )
        for finding in install_texts.look_at(text, MANIFEST_NAME):
            yield Finding("manifest_texts", finding.problem, MANIFEST_NAME)
