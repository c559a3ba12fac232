"""Sentences on how runs of agents ended, when the app reports it in a chat: by itself, or beside the user's request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from adiuva.offline_llm.messages import message_text

Message = Mapping[str, Any]

# Matches the app's sentence, and the facts in their block: behind it as a note, before it in a turn of its own.
_NOTE = re.compile(
    r"\[From the app, not from the user: a run that the user had started here has ended\.[^\]]*\]\s*"
    r"(?:\[begin run (data-\w+)\]\n.*?\n\[end run \1\])?",
    re.DOTALL,
)
_END = re.compile(r"^The agent “(?P<name>[^”\n]*)” has ended: (?P<state>[^\n]*)\.$", re.MULTILINE)
_FOUND = re.compile(r"^New records: (?P<found>[^\n]*)$", re.MULTILINE)
_PROBLEM = re.compile(r"^Problem: (?P<problem>[^\n]*)$", re.MULTILINE)


def take(messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """Return the messages without the app's notes, and a sentence for each run in them that is not told yet."""
    answered = max(
        (place for place, each in enumerate(messages) if _is_answer(each)),
        default=-1,
    )
    kept: list[Message] = []
    told: list[str] = []
    for place, message in enumerate(messages):
        text = message_text(message) if message.get("role") == "user" else ""
        if not _NOTE.search(text):
            kept.append(message)
            continue
        if place > answered:
            told += _sentences(text)
        if (rest := _NOTE.sub("", text)).strip():
            kept.append({**message, "content": rest})
    return kept, told


def not_in(answer: str, told: Sequence[str]) -> str:
    """Return the sentences about runs that an answer does not tell anyway."""
    return " ".join(each for each in told if f"{each.partition('”')[0]}” has ended" not in answer)


def has_request(messages: Sequence[Message]) -> bool:
    """Return whether the user waits for an answer besides the reports."""
    return bool(messages) and not _is_answer(messages[-1])


def _is_answer(message: Message) -> bool:
    return message.get("role") == "assistant" and not message.get("tool_calls")


def _sentences(text: str) -> list[str]:
    ends = list(_END.finditer(text))
    until = [*(end.start() for end in ends[1:]), len(text)]
    return [
        _sentence(end["name"], end["state"], text[end.end() : place])
        for end, place in zip(ends, until, strict=True)
    ]


def _sentence(name: str, state: str, facts: str) -> str:
    found, problem = _FOUND.search(facts), _PROBLEM.search(facts)
    records = found["found"] if found else "none"
    news = "it found nothing new" if records == "none" else f"new for your review: {records}"
    said = f"“{name}” has ended ({state.lower()}): {news}."
    return f"{said} A problem: {problem['problem'].rstrip('.')}." if problem else said
