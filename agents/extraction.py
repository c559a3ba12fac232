"""Extract records from a document: one model call for each part of it, no tools, one repair.

When a document is read again, the model is shown the records found in it before: it says of each whether it is still
there, and only new ones become records (`agents.reconciliation`).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from adiuva import llm
from adiuva.core import prompt_files
from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.documents import Head, Part, cut_into_parts
from agents.prompt_context import describe_known, nearest_known, nearest_projects
from agents.reconciliation import KnownRecord
from agents.record_validation import Record, RecordRules, RejectedRecord, Verdict, in_order

PART_CHARS: Final = 8_000
# The most characters of an unusable answer that are shown to the model again.
_REPEATED_CHARS: Final = 4 * PART_CHARS
_MAX_REASONS: Final = 50
# The most times that the model is asked for the rest of an answer that breaks off.
_MAX_CONTINUATIONS: Final = 6
# If not even one record of a part fits an answer, the part is cut in two, down to this size.
_LEAST_PART_CHARS: Final = 500

_PROMPT: Final = prompt_files.load("agents", "extraction")
# Small models return the prompt's examples as findings.
_EXAMPLES: Final = frozenset(map(str.casefold, re.findall(r'"title": "([^"]+)"', _PROMPT.text)))
_WORD: Final = re.compile(r"\w+")
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
    """The result for a document: `records` that the answers call new, and `verdicts` on those known before."""

    records: list[Record] = field(default_factory=list)
    verdicts: dict[UUID, Verdict] = field(default_factory=dict)
    rejected: list[RejectedRecord] = field(default_factory=list)
    model_calls: int = 0


@dataclass(frozen=True)
class Extractor:
    """Extracts records from documents by the instructions of one agent."""

    model: llm.ChatModel
    instructions: str
    rules: RecordRules
    # Known facts about the freelancer, one a line (memory.profile).
    profile: str = ""

    async def extract(
        self, document: SourceDocument, found: Extraction, known: Sequence[KnownRecord] = ()
    ) -> None:
        """Set the fields of `found` from a document of any length; calls are counted even if it fails.

        `known`: records found in the document before; each part is shown the nearest of them.

        Raises llm.ModelError if the model cannot be reached, llm.BadOutput if it gave no JSON twice.
        """
        await self.model.find_window()
        # A third of a small window is for the text; the rest is for the instructions, known records, and the answer.
        most = self.model.window.part(3, PART_CHARS)
        parts = cut_into_parts(
            document.content,
            most_chars=max(_LEAST_PART_CHARS, most),
            head=document.head,
            kind=document.kind,
        )
        mine = [each for each in known if each.record.table in self.rules.tables]
        readings = [
            _PartReading(self, document.name, part, nearest_known(mine, part.text), found) for part in parts
        ]
        answers = [await readings[0].read()] if len(readings) == 1 else await _read_at_once(readings)
        found.records = in_order(record for answer in answers for record in answer.records)
        found.rejected = [rejected for answer in answers for rejected in answer.rejected]
        found.verdicts = _agreed(
            [answer.verdicts for answer in answers], [answer.shown for answer in answers]
        )

    def messages(self, name: str, part: Part, known: Sequence[KnownRecord]) -> list[llm.Message]:
        """Return a system message, the same for all documents, and one of the user's: the agent's part, the
        document.
        """
        projects = nearest_projects(self.rules.projects, f"{name}\n{part.context}\n{part.text}")
        context = (
            f"What this freelancer asks you to look for:\n{self.instructions or 'Whatever fits the tables.'}\n\n"
            f"Tables: {', '.join(self.rules.tables)}\n"
            f"Projects: {json.dumps(projects, ensure_ascii=False)}"
        )
        if self.profile:
            context += f"\nFreelancer:\n{delimit_untrusted('freelancer', self.profile)}"
        if known:
            context += f"\n\nKnown: {describe_known(known, self.rules.zone)}"
        context += f"\nToday: {dt.datetime.now(self.rules.zone):%A %Y-%m-%d}"
        one_line = " ".join(name.split())
        head = f"Document: {one_line}\nPart: {part.number} of {part.count}\n{part.context}".rstrip()
        document = delimit_untrusted("document", f"{head}\n\n{part.text}")
        return [
            {"role": "system", "content": _PROMPT.text},
            {"role": "user", "content": f"{context}\n\n{document}"},
        ]


@dataclass
class _PartAnswer:
    """The result for one part, over all its answers. `shown`: the known records that the question listed."""

    records: list[Record] = field(default_factory=list)
    rejected: list[RejectedRecord] = field(default_factory=list)
    verdicts: dict[UUID, Verdict] = field(default_factory=dict)
    shown: set[UUID] = field(default_factory=set)


class _PartReading:
    """The conversation about one part: a question, at most one repair, and the rest of answers that break off.

    It does not use `llm.structured.ask_structured`, which takes an answer as a whole or not at all: here usable records
    are kept, and the model is asked only for the others again.
    """

    def __init__(
        self, extractor: Extractor, name: str, part: Part, known: Sequence[KnownRecord], found: Extraction
    ) -> None:
        self._extractor, self._name, self._part, self._known = extractor, name, part, known
        self._found = found
        self._rules = extractor.rules
        self._schema = self._rules.schema(with_known=bool(known))
        self._question = extractor.messages(name, part, known)
        self._answer = _PartAnswer(shown={each.id for each in known})
        self._problems: list[RejectedRecord] = []

    async def read(self) -> _PartAnswer:
        """Return the answer about the part. Raises llm.ModelError, and llm.BadOutput if no answer holds JSON."""
        messages = self._question
        repairs, continuations = 1, 0
        understood = False
        while True:
            try:
                values, cut, text = await self._ask(messages)
            except llm.ModelContextExceeded:
                if len(self._part.text) <= _LEAST_PART_CHARS:
                    raise
                return await self._read_in_halves()
            if not values and cut is None:
                if not repairs:
                    if understood:
                        break
                    raise llm.BadOutput(
                        "the model's answer holds no JSON value", text=text, usage=llm.Usage()
                    )
                repairs -= 1
                messages = self._repair(text, "the answer is not JSON.")
                continue
            records, rejected = self._rules.check(*values, *([cut] if cut else []), part=self._part.number)
            if copied := [record for record in records if self._is_copied_example(record)]:
                records = [record for record in records if record not in copied]
                rejected += [
                    RejectedRecord(
                        "copied_example",
                        "it stands in the example of the instructions, and not in the document",
                        repairable=False,
                        place=record.place,
                    )
                    for record in copied
                ]
            if cut is not None:
                rejected = [each for each in rejected if each.code != "no_records"]
            self._note_verdicts(values, cut)
            added = self._take(records, rejected, again=understood)
            understood = True
            if cut is not None:
                if not added and not self._answer.records and len(self._part.text) > _LEAST_PART_CHARS:
                    return await self._read_in_halves()
                continuations += 1
                if not added or continuations > _MAX_CONTINUATIONS:
                    self._answer.rejected.append(
                        RejectedRecord(
                            "answer_cut_off",
                            "the model's answers break off, so the rest was not read",
                            place=f"part {self._part.number}",
                        )
                    )
                    break
                messages = self._continue()
                continue
            wanted = self._repairable(records, rejected)
            if not wanted or not repairs:
                break
            repairs -= 1
            reasons = "\n".join(f"- {reason}" for reason in wanted[:_MAX_REASONS])
            messages = self._repair(
                text,
                f"some records cannot be used:\n{reasons}\n"
                "Answer again in full, with these mended; leave out what cannot be mended.",
            )
        return self._answer

    async def _ask(self, messages: Sequence[llm.Message]) -> tuple[Sequence[Any], Any, str]:
        """Return the values of an answer (the complete parts of one that breaks off), and its text."""
        self._found.model_calls += 1
        try:
            reply = await self._extractor.model.structured(messages, name="records", schema=self._schema)
        except llm.BadOutput as error:
            return (), error.cut, error.text
        return reply.values or (reply.value,), reply.cut, reply.text

    def _repair(self, text: str, complaint: str) -> list[llm.Message]:
        return [
            *self._question,
            {"role": "assistant", "content": text[:_REPEATED_CHARS] or "{}"},
            {"role": "user", "content": f"Repair: {complaint} Answer with the JSON object alone."},
        ]

    def _continue(self) -> list[llm.Message]:
        """Ask for the missing rest of an answer that breaks off, and quote its complete records."""
        taken = {"records": [{"table": each.table, "data": each.data} for each in self._answer.records]}
        return [
            *self._question,
            {"role": "assistant", "content": json.dumps(taken, ensure_ascii=False)},
            {
                "role": "user",
                "content": "Go on: your answer broke off at the limit of its length, after these records. Answer in "
                "the same form with the records that are missing, and only with these.",
            },
        ]

    async def _read_in_halves(self) -> _PartAnswer:
        """Read the halves of a text that is too long, or whose answer is: a shorter text may have shorter answers."""
        pieces = cut_into_parts(self._part.text, most_chars=len(self._part.text) // 2 + 1)
        whole = self._answer
        verdicts, shown = [whole.verdicts], [set(whole.verdicts)]
        for piece in pieces:
            part = Part(self._part.number, self._part.count, 0, piece.text, self._part.context)
            reading = _PartReading(self._extractor, self._name, part, self._known, self._found)
            answer = await reading.read()
            whole.records += answer.records
            whole.rejected += answer.rejected
            verdicts.append(answer.verdicts)
            shown.append(answer.shown)
        whole.verdicts = _agreed(verdicts, shown)
        return whole

    def _note_verdicts(self, values: Sequence[Any], cut: Any) -> None:
        numbered = dict(enumerate(self._known, 1))
        tables = {number: each.record.table for number, each in numbered.items()}
        for verdict in self._rules.verdicts(*values, *([cut] if cut else []), tables=tables):
            self._answer.verdicts.setdefault(numbered[verdict.number].id, verdict)

    def _take(self, records: Sequence[Record], rejected: Sequence[RejectedRecord], *, again: bool) -> int:
        """Add an answer's records. Returns how many it adds.

        A repair or a continuation may repeat everything, or only the missing part. So records that are there already
        are not taken twice, and a record without some field gives way to one that has it.
        """
        answer = self._answer
        if not again:
            answer.records, answer.rejected = list(records), list(rejected)
            return len(records)
        there = Counter(record.identity for record in answer.records)
        flawed = {record.words: record for record in answer.records if record.problems}
        added = mended = 0
        for record in records:
            if there[record.identity]:
                there[record.identity] -= 1
            elif (worse := flawed.pop(record.words, None)) is not None:
                answer.records[answer.records.index(worse)] = record
            else:
                answer.records.append(record)
                added += 1
        mended = added
        missing = max(0, len(answer.rejected) - len(rejected) - mended)
        unmended = sorted(answer.rejected, key=lambda each: each.repairable)[:missing]
        answer.rejected = [*rejected, *unmended]
        return added

    def _is_copied_example(self, record: Record) -> bool:
        title = record.title.casefold()
        if title not in _EXAMPLES:
            return False
        said = f"{self._name} {self._part.context} {self._part.text}".casefold()
        return not set(_WORD.findall(title)) <= set(_WORD.findall(said))

    @staticmethod
    def _repairable(records: Sequence[Record], rejected: Sequence[RejectedRecord]) -> list[str]:
        """Return why an answer should be mended, and where."""
        reasons = [f"{each.place}: {each.reason}".lstrip(": ") for each in rejected if each.repairable]
        reasons += [
            f"{each.place}: {problem.reason}".lstrip(": ")
            for each in records
            for problem in each.problems
            if problem.repairable
        ]
        return list(dict.fromkeys(reasons))


async def _read_at_once(readings: Sequence[_PartReading]) -> list[_PartAnswer]:
    """Read parts concurrently. If one fails, the others' answers are useless; their requests have ended on return."""
    tasks = [asyncio.create_task(reading.read()) for reading in readings]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _agreed(answers: Sequence[Mapping[UUID, Verdict]], shown: Sequence[set[UUID]]) -> dict[UUID, Verdict]:
    """Return one verdict for each known record. It is gone only if the answers on all parts that listed it say so."""
    found: dict[UUID, Verdict] = {}
    for key in {key for answer in answers for key in answer}:
        said = [answer[key] for answer in answers if key in answer]
        staying = sorted(
            (each for each in said if each.now != "gone"),
            key=lambda each: ("changed", "done", "there").index(each.now),
        )
        if staying:
            found[key] = staying[0]
        elif len(said) == sum(key in listed for listed in shown):
            found[key] = said[0]
    return found
