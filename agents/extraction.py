"""Extract records from a document: one model call for each part of it, no tools, one repair."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from dataclasses import dataclass, field
from typing import Any, Final

from adiuva import llm
from adiuva.core import prompt_files
from adiuva.documents import Head, Part, cut_into_parts
from adiuva.llm.structured import UnusableAnswer, ask_structured
from agents.records import Record, RecordRules, RejectedRecord, merge_records

PART_CHARS: Final = 8_000
# How much of an unusable answer is shown to the model again.
_REPEATED_CHARS: Final = 4 * PART_CHARS
_MAX_REASONS: Final = 50

_PROMPT: Final = prompt_files.load("agents", "extraction")
PROMPT_VERSION: Final = _PROMPT.version


@dataclass(frozen=True)
class SourceDocument:
    """A text to extract records from. `key` is the keyed hash of its path or message id; `kind` its media type."""

    name: str
    path: str
    content: str
    key: bytes
    content_hash: bytes
    head: Head = field(default_factory=Head)
    kind: str = ""


@dataclass
class Extraction:
    records: list[Record] = field(default_factory=list)
    rejected: list[RejectedRecord] = field(default_factory=list)
    model_calls: int = 0


@dataclass(frozen=True)
class Extractor:
    """Extracts records from documents by the instructions of one agent."""

    model: llm.ChatModel
    instructions: str
    rules: RecordRules

    async def extract(self, document: SourceDocument, found: Extraction) -> None:
        """Set `found.records` and `found.rejected` from a document of any length; calls are counted even if it fails.

        Raises llm.ModelError if the model cannot be reached, llm.BadOutput if it gave no JSON twice.
        """
        parts = cut_into_parts(
            document.content, most_chars=PART_CHARS, head=document.head, kind=document.kind
        )
        tasks = [asyncio.create_task(self._extract_part(document.name, part, found)) for part in parts]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # if one has failed, the answers of the others are useless
        found.records = merge_records([answer.records for answer in answers])
        found.rejected = [rejected for answer in answers for rejected in answer.rejected]

    async def _extract_part(self, name: str, part: Part, found: Extraction) -> _CheckedAnswer:
        checked: list[_CheckedAnswer] = []

        def read(answer: Any) -> None:
            records, rejected = self.rules.check(answer)
            checked.append(_CheckedAnswer(records, rejected))
            reasons = list(dict.fromkeys(item.reason for item in rejected if item.repairable))
            if reasons:
                raise UnusableAnswer(
                    "some records cannot be used:\n"
                    + "\n".join(f"- {reason}" for reason in reasons[:_MAX_REASONS])
                    + "\nAnswer again in full, with these mended; leave out what cannot be mended."
                )

        def count_call() -> None:
            found.model_calls += 1

        try:
            await ask_structured(
                self.model,
                self._messages(name, part),
                name="records",
                schema=self.rules.schema(),
                read=read,
                max_quoted_chars=_REPEATED_CHARS,
                on_attempt=count_call,
            )
        except UnusableAnswer:
            pass  # what is good of the answers is used
        except llm.BadOutput:
            if not checked:
                raise
        return checked[0] if len(checked) == 1 else _combine(*checked)

    def _messages(self, name: str, part: Part) -> list[llm.Message]:
        """The messages, the stable parts first so that providers can cache them, the document alone in the last."""
        projects = [{"id": key, "name": title} for key, title in self.rules.projects.items()]
        context = (
            f"What this freelancer asks you to look for:\n{self.instructions or 'Whatever fits the tables.'}\n\n"
            f"Tables: {', '.join(self.rules.tables)}\n"
            f"Projects: {json.dumps(projects, ensure_ascii=False)}"
        )
        today = dt.datetime.now(self.rules.zone).date().isoformat()
        one_line = " ".join(name.split())
        head = f"Document: {one_line}\nPart: {part.number} of {part.count}\nToday: {today}\n{part.context}".rstrip()
        return [
            {"role": "system", "content": _PROMPT.text},
            {"role": "user", "content": context},
            {"role": "user", "content": f"{head}\n\n{part.text}"},
        ]


@dataclass(frozen=True)
class _CheckedAnswer:
    records: list[Record]
    rejected: list[RejectedRecord]


def _combine(first: _CheckedAnswer, second: _CheckedAnswer) -> _CheckedAnswer:
    """What an answer and its repair give together.

    The repair may repeat everything or only what it mended, so good records of the first answer stay. A record that was
    rejected first, and neither mended nor rejected again, is still missing.
    """
    known = {record.identity for record in first.records}
    mended = sum(record.identity not in known for record in second.records)
    missing = max(0, len(first.rejected) - len(second.rejected) - mended)
    unmended = sorted(first.rejected, key=lambda rejected: rejected.repairable)[:missing]
    return _CheckedAnswer(merge_records([first.records, second.records]), [*second.rejected, *unmended])
