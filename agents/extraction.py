"""A document becomes records: one model call a part, no tools, one repair try."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from adiuva import llm
from agents.records import Record, RecordRules, RejectedRecord, merge_records

PART_CHARS: Final = 8_000
OVERLAP_CHARS: Final = 400
_REPEATED_CHARS: Final = 4 * PART_CHARS  # of an answer that the model is shown again

_PROMPT: Final = (Path(__file__).parent / "prompts" / "extraction.md").read_text("utf-8")
PROMPT_VERSION: Final = hashlib.sha256(_PROMPT.encode()).hexdigest()


@dataclass(frozen=True)
class SourceDocument:
    """A text to extract from. `key` is the keyed hash of its path or message id."""

    name: str
    path: str
    content: str
    key: bytes
    content_hash: bytes


@dataclass
class Extraction:
    records: list[Record] = field(default_factory=list)
    rejected: list[RejectedRecord] = field(default_factory=list)
    model_calls: int = 0


@dataclass(frozen=True)
class Extractor:
    """What stays the same for all documents of a run."""

    model: llm.ChatModel
    instructions: str
    rules: RecordRules

    async def extract(self, document: SourceDocument, found: Extraction) -> None:
        """Add all records of a document, however long it is, to `found`. The calls that it took are counted there
        also when it fails.

        Raise llm.ModelError when the model cannot be reached, llm.BadOutput when it twice gave no JSON.
        """
        parts = split_text(document.content)
        tasks = [
            asyncio.create_task(self._part(document.name, part, number, len(parts), found))
            for number, part in enumerate(parts, 1)
        ]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # when one has failed, the others' answers are of no use
        found.records = merge_records([answer.records for answer in answers])
        found.rejected = [rejected for answer in answers for rejected in answer.rejected]

    async def _part(self, name: str, text: str, number: int, parts: int, found: Extraction) -> _CheckedAnswer:
        messages = self._messages(name, text, number, parts)
        found.model_calls += 1
        first = await self._ask(messages)
        if not first.complaint:
            return first
        messages += [
            {"role": "assistant", "content": first.text[:_REPEATED_CHARS]},
            {"role": "user", "content": first.complaint},
        ]
        found.model_calls += 1
        second = await self._ask(messages)
        if first.bad and second.bad:
            raise second.bad
        # The second answer may hold everything or only what was mended; what was good the first time stays, and
        # what was neither mended nor refused again is still missing.
        known = {record.identity for record in first.records}
        mended = sum(record.identity not in known for record in second.records)
        missing = max(0, len(first.rejected) - len(second.rejected) - mended)
        unmended = sorted(first.rejected, key=lambda rejected: rejected.repairable)[:missing]
        return _CheckedAnswer(merge_records([first.records, second.records]), [*second.rejected, *unmended])

    async def _ask(self, messages: list[llm.Message]) -> _CheckedAnswer:
        try:
            answer = await self.model.structured(messages, name="records", schema=self.rules.schema())
        except llm.BadOutput as bad:
            complaint = "Repair: the answer is not JSON. Answer with the JSON object alone."
            return _CheckedAnswer(text=bad.text, complaint=complaint, bad=bad)
        records, rejected = self.rules.check(answer.value)
        reasons = list(dict.fromkeys(item.reason for item in rejected if item.repairable))
        if not reasons:
            return _CheckedAnswer(records, rejected)
        complaint = "Repair: some records cannot be used:\n" + "\n".join(f"- {it}" for it in reasons[:50])
        complaint += "\nAnswer again in full, with these mended; leave out what cannot be mended."
        return _CheckedAnswer(records, rejected, answer.text, complaint)

    def _messages(self, name: str, text: str, number: int, parts: int) -> list[llm.Message]:
        """The stable part first, so that providers can cache it; the document alone in the last message."""
        projects = [{"id": key, "name": title} for key, title in self.rules.projects.items()]
        context = (
            f"What this freelancer asks you to look for:\n{self.instructions or 'Whatever fits the tables.'}\n\n"
            f"Tables: {', '.join(self.rules.tables)}\n"
            f"Projects: {json.dumps(projects, ensure_ascii=False)}"
        )
        today = dt.datetime.now(self.rules.zone).date().isoformat()
        one_line = " ".join(name.split())
        return [
            {"role": "system", "content": _PROMPT},
            {"role": "user", "content": context},
            {
                "role": "user",
                "content": f"Document: {one_line}\nPart: {number} of {parts}\nToday: {today}\n\n{text}",
            },
        ]


@dataclass(frozen=True)
class _CheckedAnswer:
    """One answer, checked. `complaint`: what to say to the model about it; `bad`: there was no JSON in it at all."""

    records: list[Record] = field(default_factory=list)
    rejected: list[RejectedRecord] = field(default_factory=list)
    text: str = ""
    complaint: str = ""
    bad: llm.BadOutput | None = None


def split_text(text: str) -> list[str]:
    """Parts of at most PART_CHARS that overlap, cut at the end of a paragraph, line or word where there is one."""
    if not text.strip():
        return []
    parts = []
    start = 0
    while len(text) - start > PART_CHARS:
        end = _cut(text, start + PART_CHARS // 2, start + PART_CHARS)
        parts.append(text[start:end])
        start = _cut(text, end - OVERLAP_CHARS, end - OVERLAP_CHARS // 2)
    parts.append(text[start:])
    return parts


def _cut(text: str, least: int, most: int) -> int:
    for mark in ("\n\n", "\n", " "):
        if (found := text.rfind(mark, least, most)) > 0:
            return found + len(mark)
    return most
