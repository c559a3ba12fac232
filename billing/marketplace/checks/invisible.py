"""Characters that are invisible, or that change the order of visible ones: a reviewer must see all of a text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from adiuva.core.errors import Text
from billing.marketplace.checks.text_files import line_of, text_of
from billing.marketplace.findings import Finding
from billing.marketplace.manifest import Manifest
from billing.marketplace.package import PackageFile

CHECK: Final = "invisible"
# Controls, direction marks, zero-width characters, fillers, tags, private use, and variation selectors in a row: each
# has carried code. A joiner or a selector alone is part of an emoji or of a word.
HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff\ue000-\uf8ff]"
    "|[\ufe00-\ufe0f\u200c\u200d]{2,}"
)


def look(_manifest: Manifest, file: PackageFile) -> Iterator[Finding]:
    text = text_of(file)
    lines: set[int] = set()
    for found in HIDDEN.finditer(text):
        line = line_of(text, found.start())
        if line not in lines:
            lines.add(line)
            yield Finding(CHECK, Text("there are characters in it that are not seen"), file.path, line)
