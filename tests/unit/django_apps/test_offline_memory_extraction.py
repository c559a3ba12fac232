"""What the offline model makes of a request for the memory's operations."""

from __future__ import annotations

import json

import pytest

from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.offline_llm.memory_extraction import memory_operations


@pytest.mark.parametrize("separator", [" ", "\u2028", "\u2029", "\x85"])
def test_a_known_entry_is_found_whatever_ends_a_line_in_it(separator: str) -> None:
    entry = {"entry": "m1", "tier": "core", "content": f"lives in{separator}Turin"}
    known = delimit_untrusted("known", json.dumps(entry, ensure_ascii=False))
    said = delimit_untrusted("e1 user", "Forget that I live in Turin")
    asked = [{"role": "user", "content": f"{known}\n\n{said}"}]
    assert memory_operations(asked) == {
        "operations": [{"op": "forget", "entry": "m1", "asked": True, "said_in": "e1"}]
    }
