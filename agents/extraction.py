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
from agents.records import Record, Rejected, Rules, merge

PART_CHARS: Final = 8_000
OVERLAP_CHARS: Final = 400

_PROMPT: Final = (Path(__file__).parent / "prompts" / "extraction.md").read_text("utf-8")
PROMPT_VERSION: Final = hashlib.sha256(_PROMPT.encode()).hexdigest()


@dataclass(frozen=True)
class Document:
    """A text to extract from. `key` is the keyed hash of its path or message id."""

    name: str
    path: str
    content: str
    key: bytes
    content_hash: bytes


@dataclass
class Extraction:
    records: list[Record] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    model_calls: int = 0


@dataclass(frozen=True)
class Extractor:
    """What stays the same for all documents of a run."""

    model: llm.ChatModel
    instructions: str
    rules: Rules

    async def extract(self, document: Document) -> Extraction:
        """All records of a document, however long it is.

        Raise llm.ModelError when the model cannot be reached, llm.BadOutput when it twice gave no JSON.
        """
        parts = split(document.content)
        if not parts:
            return Extraction()
        found = await asyncio.gather(
            *(self._part(document.name, part, number, len(parts)) for number, part in enumerate(parts, 1))
        )
        return Extraction(
            merge([part.records for part in found]),
            [rejected for part in found for rejected in part.rejected],
            sum(part.model_calls for part in found),
        )

    async def _part(self, name: str, text: str, number: int, parts: int) -> Extraction:
        messages = self._messages(name, text, number, parts)
        first, complaint = await self._ask(messages)
        if not complaint:
            return first
        messages += [
            {"role": "assistant", "content": complaint.answer},
            {"role": "user", "content": complaint.text},
        ]
        second, again = await self._ask(messages)
        if again and again.cause and complaint.cause:
            raise again.cause
        # The second answer may hold everything or only what was mended; what was good the first time stays.
        known = {record.identity for record in first.records}
        mended = [record for record in second.records if record.identity not in known]
        left = max(0, len(first.rejected) - len(mended)) if first.rejected else len(second.rejected)
        return Extraction(
            merge([first.records, second.records]),
            (second.rejected or first.rejected)[:left],
            first.model_calls + second.model_calls,
        )

    async def _ask(self, messages: list[llm.Message]) -> tuple[Extraction, _Complaint | None]:
        try:
            answer = await self.model.structured(messages, name="records", schema=self.rules.schema())
        except llm.BadOutput as bad:
            text = "Repair: the answer is not JSON. Answer with the JSON object alone."
            return Extraction(model_calls=1), _Complaint(bad.text, text, bad)
        records, rejected = self.rules.check(answer.value)
        found = Extraction(records, rejected, 1)
        reasons = [item.reason for item in rejected if item.repairable]
        if not reasons:
            return found, None
        text = "Repair: some records cannot be used:\n" + "\n".join(f"- {reason}" for reason in reasons[:50])
        text += "\nAnswer again in full, with these mended; leave out what cannot be mended."
        return found, _Complaint(answer.text, text)

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
class _Complaint:
    """What to say to the model about an answer; `cause` when there was no JSON in it at all."""

    answer: str
    text: str
    cause: llm.BadOutput | None = None


def split(text: str) -> list[str]:
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
