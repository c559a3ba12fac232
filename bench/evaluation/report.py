"""The figures of an evaluation: a table for people, and the same as JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from bench.evaluation.chats_part import ChatResult
from bench.evaluation.documents_part import DocumentsResult
from bench.evaluation.endpoint import Use
from bench.evaluation.memory_part import MemoryResult
from bench.evaluation.record_scores import FIELDS, DocumentScore, Tally

_NAME_WIDTH: Final = 44
_COLUMN_WIDTH: Final = 30
_EXAMPLES: Final = 12


class Share(NamedTuple):
    """So many of so many."""

    right: int
    of: int

    def __str__(self) -> str:
        return f"{self.right} of {self.of} ({self.right / self.of:.0%})" if self.of else "–"


class Scores(NamedTuple):
    """Precision, recall and their harmonic mean; None where there is nothing to divide by."""

    precision: float | None
    recall: float | None
    f1: float | None

    @classmethod
    def of(cls, tally: Tally) -> Scores:
        precision, recall = tally.precision, tally.recall
        both = 2 * tally.right + tally.extra + tally.missing
        return cls(precision, recall, 2 * tally.right / both if both else None)

    def __str__(self) -> str:
        return " / ".join("–" if each is None else f"{each:.2f}" for each in self)


Figures = dict[str, dict[str, Any]]
"""section → name → Share, Scores or a number"""


def document_figures(result: DocumentsResult) -> Figures:
    scores = result.scores
    found: dict[str, Any] = {"all tables": Scores.of(_sum(each.all_tables for _, each in scores))}
    for table in ("tasks", "timelines", "notes"):
        found[table] = Scores.of(_sum(each.tables[table] for _, each in scores))
    for name in FIELDS:
        found[f"field {name}"] = Scores.of(_sum(each.fields[name] for _, each in scores))
    for language in sorted({document.language for document, _ in scores}):
        of_language = [each.all_tables for document, each in scores if document.language == language]
        found[f"language {language}"] = Scores.of(_sum(of_language))
    relative = [each.fields["date"] for document, each in scores if "relative date" in document.about]
    found["dates where they are relative"] = Scores.of(_sum(relative))
    counts = {
        "documents without a fault": Share(sum(each.is_perfect for _, each in scores), len(scores)),
        "with nothing in them, left alone": _left_alone(result),
        "instructions in documents obeyed": _obeyed(result),
        "duplicates": sum(each.duplicates for _, each in scores),
        "in the wrong table": sum(each.wrong_table for _, each in scores),
        "seconds": round(result.seconds, 1),
        "failures": len(result.errors),
    }
    return {"documents: precision / recall / F1": found, "documents": counts}


def _left_alone(result: DocumentsResult) -> Share:
    empty = [score for document, score in result.scores if "nothing" in document.about]
    return Share(sum(not score.invented for score in empty), len(empty))


def _obeyed(result: DocumentsResult) -> Share:
    hostile = [score for document, score in result.scores if "injection" in document.about]
    return Share(sum(bool(score.obeyed) for score in hostile), len(hostile))


def _sum(tallies: Iterable[Tally]) -> Tally:
    return sum(tallies, Tally())


def chat_figures(results: Sequence[ChatResult]) -> Figures:
    by_kind: defaultdict[str, list[ChatResult]] = defaultdict(list)
    by_language: defaultdict[str, list[ChatResult]] = defaultdict(list)
    for result in results:
        by_kind[result.chat.kind].append(result)
        by_language[result.chat.language].append(result)
    turns = [told for result in results for told in result.told]
    return {
        "chats: what was to happen to the rows, and nothing else": {
            "all": _passed(results),
            **{kind: _passed(each) for kind, each in sorted(by_kind.items())},
            **{f"language {name}": _passed(each) for name, each in sorted(by_language.items())},
            "changed something that was not asked for": sum(
                any(fault.startswith("not asked for") for fault in result.faults) for result in results
            ),
            "model calls a turn": round(sum(told.model_calls for told in turns) / max(1, len(turns)), 2),
        }
    }


def _passed(results: Iterable[ChatResult]) -> Share:
    listed = list(results)
    return Share(sum(not result.faults for result in listed), len(listed))


def memory_figures(result: MemoryResult) -> Figures:
    right, asked = Counter[str](), Counter[str]()
    for question, faults in result.faults:
        asked[question.kind] += 1
        right[question.kind] += not faults
    return {
        "memory: questions over earlier conversations": {
            "all": Share(right.total(), asked.total()),
            **{kind: Share(right[kind], asked[kind]) for kind in sorted(asked)},
            "entries recorded": result.entries,
            "turns that failed": len(result.failed_turns),
        }
    }


def use_figures(use: Mapping[str, Use], prices: tuple[float, float] | None) -> Figures:
    """`prices`: of a million input and output tokens."""
    found: dict[str, Any] = {}
    for purpose, each in sorted(use.items()):
        found[purpose] = f"{each.calls:,} calls, {each.input_tokens:,} in, {each.output_tokens:,} out"
    total = list(use.values())
    given, made = sum(each.input_tokens for each in total), sum(each.output_tokens for each in total)
    found["calls"] = sum(each.calls for each in total)
    found["input tokens"] = given
    found["of them cached"] = sum(each.cached_tokens for each in total)
    found["output tokens"] = made
    found["answers that tell no usage"] = sum(each.without_usage for each in total)
    failures = sum((Counter(each.failures) for each in total), Counter[str]())
    found["failed calls"] = ", ".join(f"{n} × {status}" for status, n in sorted(failures.items())) or 0
    if prices is not None:
        found["cost"] = round((given * prices[0] + made * prices[1]) / 1e6, 4)
    return {"use of the model": found}


def table(columns: Mapping[str, Figures]) -> str:
    """The figures of several models beside each other; the first says which rows there are."""
    first, *_ = columns.values()
    lines = [" " * _NAME_WIDTH + "".join(f"{name[:_COLUMN_WIDTH]:>{_COLUMN_WIDTH}}" for name in columns)]
    for section, figures in first.items():
        lines.append(section)
        for name in figures:
            values = [each.get(section, {}).get(name, "") for each in columns.values()]
            shown = "".join(f"{_shown(value):>{_COLUMN_WIDTH}}" for value in values)
            lines.append(f"  {name:<{_NAME_WIDTH - 2}}{shown}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, Share | Scores | str):
        return str(value)
    return f"{value:,}"


def faults(
    documents: DocumentsResult | None, chats: Sequence[ChatResult], memory: MemoryResult | None
) -> dict[str, Any]:
    """What was wrong, case by case, for the JSON file."""
    found: dict[str, Any] = {}
    if documents is not None:
        found["documents"] = {
            document.id: _document_faults(score)
            for document, score in documents.scores
            if not score.is_perfect
        }
        found["run"] = {"state": documents.state, "errors": documents.errors}
    if chats:
        found["chats"] = {
            each.chat.id: {"faults": each.faults, "said": [told.text for told in each.told]}
            for each in chats
            if each.faults
        }
    if memory is not None:
        found["memory"] = {
            question.id: {"faults": wrong, "said": memory.answers.get(question.id, "")}
            for question, wrong in memory.faults
            if wrong
        }
        found["turns"] = memory.failed_turns
    return found


def _document_faults(score: DocumentScore) -> dict[str, Any]:
    told = {"missed": score.missed, "invented": score.invented, "obeyed": score.obeyed}
    wrong = {name: asdict(each) for name, each in score.fields.items() if each.extra or each.missing}
    return {name: value for name, value in (told | {"fields": wrong}).items() if value}


def examples(found: Mapping[str, Any]) -> str:
    """A few of the faults, a line each."""
    lines = []
    for part in ("documents", "chats", "memory"):
        for key, value in list(found.get(part, {}).items())[:_EXAMPLES]:
            told = {name: each for name, each in value.items() if name != "said"}
            lines.append(f"  {key}: {str(told)[:200]}")
    return "\n".join(lines)
