"""The offline model answers in terms of what it is told was found before, as the prompt of agents asks."""

from __future__ import annotations

import json
from typing import Any
from zoneinfo import ZoneInfo

from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.offline_llm.extraction import extract_records
from agents.record_validation import RecordRules

RULES = RecordRules(("tasks",), {}, ZoneInfo("UTC"))
BEFORE = """# Plan

- [ ] Call Ada by 2026-12-03
- [ ] Send the offer
- [ ] Book a room
- [ ] Pay the rent
"""
NOW = """# Plan

- [ ] Call Ada by 2026-12-10
- [x] Send the offer
- [ ] Pay the rent
- [ ] Buy stamps
"""


def answer(text: str, known: list[dict[str, Any]]) -> dict[str, Any]:
    said = f"\n\nKnown: {json.dumps(known)}" if known else ""
    document = delimit_untrusted("document", f"Document: plan.md\nPart: 1 of 1\n\n{text}")
    messages = [
        {"role": "system", "content": "Read."},
        {
            "role": "user",
            "content": f"What this freelancer asks you to look for:\nAll.\n\nProjects: {{}}{said}\n"
            f"Today: Saturday 2026-11-28\n\n{document}",
        },
    ]
    return extract_records(messages, RULES.schema(with_known=bool(known)))


def test_it_says_what_is_there_changed_done_gone_and_new() -> None:
    first = answer(BEFORE, [])
    assert first.keys() == {"records"}
    known = [
        {"id": number, "table": "tasks", **row["data"]} for number, row in enumerate(first["records"], 1)
    ]
    second = answer(NOW, known)
    assert {row["id"]: row["now"] for row in second["known"]} == {
        1: "changed",
        2: "done",
        3: "gone",
        4: "there",
    }
    assert next(row["data"] for row in second["known"] if row["id"] == 1) == {"dueDate": "2026-12-10"}
    assert [row["data"]["title"] for row in second["records"]] == ["Buy stamps"]
