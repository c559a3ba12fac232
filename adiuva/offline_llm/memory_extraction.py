"""Answers memory requests: extracts facts from what the user states, summarizes lines, and finds patterns."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adiuva.offline_llm.messages import delimited_blocks, delimited_text, message_text

_MAX_CHARS = 300
_MAX_LINES = 12
_SENTENCE_BREAK = re.compile(r"(?<=[.!?;])\s+|\n+")
_TRAILING_PUNCTUATION = " .!;,:"
_FILLER = r"(?:(?:please|and|also|but|so|by the way|actually|well|ok|okay|bitte|und|e|poi)[ ,]+)*"


def _phrase_pattern(*patterns: str) -> re.Pattern[str]:
    return re.compile(rf"^{_FILLER}(?:{'|'.join(patterns)})", re.IGNORECASE)


# The key of a core fact, and the phrases whose last group is its value.
_FACT_PATTERNS = [
    (
        "name",
        _phrase_pattern(
            r"my name is (.+)",
            r"call me (.+)",
            r"ich hei(?:ß|ss)e (.+)",
            r"nenn mich (.+)",
            r"mi chiamo (.+)",
        ),
    ),
    (
        "home",
        _phrase_pattern(
            r"i(?: now)? live in (.+)",
            r"i(?:'ve| have)? moved to (.+)",
            r"ich wohne in (.+)",
            r"(?:vivo|abito) a (.+)",
        ),
    ),
    (
        "work",
        _phrase_pattern(
            r"i(?: now)? work (?:for|at|as) (.+)",
            r"ich arbeite (?:für|bei|als) (.+)",
            r"lavoro (?:per|come) (.+)",
        ),
    ),
    (
        "rate",
        _phrase_pattern(
            r"i(?: now)? (?:bill|charge) (.+)",
            r"my (?:hourly |daily )?rate is (.+)",
            r"ich (?:berechne|nehme) (.+)",
        ),
    ),
]
_KEYED_PREFERENCE = _phrase_pattern(
    r"my (?P<key>favou?rite [\w -]{2,40}|preferred [\w -]{2,40}) is (?:now )?(?P<value>.+)",
    r"i prefer (?P<value2>.+?) (?:for|as) (?:my |the )?(?P<key2>[\w -]{2,40})$",
    r"ich bevorzuge (?P<value3>.+?) (?:für|als) (?P<key3>[\w -]{2,40})$",
    r"preferisco (?P<value4>.+?) (?:per|come) (?P<key4>[\w -]{2,40})$",
)
_STATEMENTS = _phrase_pattern(
    r"i (?:prefer|always|never|usually|like|hate|love|need|want you to) .+",
    r"from now on,? .+",
    r"(?:always|never) .+",
    r"ich (?:bevorzuge|mag|möchte immer|brauche) .+",
    r"(?:ab jetzt|immer|nie) .+",
    r"(?:preferisco|d'ora in poi|sempre|mai) .+",
)
_REMEMBER = _phrase_pattern(
    r"(?:remember|keep in mind|don't forget|note)(?: that|:)? (.+)",
    r"merk dir(?:,? dass|:)? (.+)",
    r"ricorda(?:ti)?(?: che|:)? (.+)",
)
_FORGET = _phrase_pattern(
    r"forget(?: that| about|:)? (.+)", r"vergiss(?:,? dass|:)? (.+)", r"dimentica(?: che|:)? (.+)"
)
_CORRECTION = re.compile(
    r"\bnot (?P<old>.+?) any ?more,? but (?P<new>.+)|\bno longer (?P<old2>.+?),? but (?P<new2>.+)",
    re.IGNORECASE,
)
_NO_LONGER = re.compile(r"\b(?:no longer|not .+ any ?more|nicht mehr|non .+ più)\b", re.IGNORECASE)
_WORD = re.compile(r"\w{3,}")
_STOP_WORDS = frozenset(
    "that this the and any more not but longer now has have you are for with about forget".split()  # noqa: SIM905
)


def memory_operations(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `{"operations": […]}` for the user's statements in the last message that holds exchanges."""
    asked = next(
        (said for said in map(message_text, reversed(messages)) if delimited_text(said, "e1 user")), ""
    )
    known = list(_known_entries(delimited_text(asked, "known")))
    operations: list[dict[str, Any]] = []
    for name, said in delimited_blocks(asked):
        label, _, who = name.partition(" ")
        if who == "user":
            for sentence in _SENTENCE_BREAK.split(said):
                operations += [{**found, "said_in": label} for found in _operations(sentence.strip(), known)]
    return {"operations": operations}


def summarize_lines(messages: Sequence[Mapping[str, Any]], name: str, prefix: str) -> dict[str, Any]:
    """Return `{"summary": …}` of the named block: its lines that start with `prefix`, each shortened."""
    material = delimited_text(message_text(messages[-1]), name) if messages else ""
    lines = [line.removeprefix("user: ").strip() for line in material.splitlines() if line.startswith(prefix)]
    shown = [line if len(line) <= _MAX_CHARS else f"{line[:_MAX_CHARS]}…" for line in lines if line]
    return {"summary": "\n".join(shown[:_MAX_LINES])}


def find_patterns(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the patterns: entries that were noted three times or more in the same words."""
    asked = message_text(messages[-1]) if messages else ""
    there = {said.casefold(): label for label, said in _labelled_lines(delimited_text(asked, "patterns"))}
    seen: dict[str, list[str]] = {}
    for label, said in _labelled_lines(delimited_text(asked, "entries")):
        seen.setdefault(said.casefold(), []).append(label)
    often = {said: labels for said, labels in seen.items() if len(labels) > 2}
    return {
        "new": [{"content": said, "evidence": labels} for said, labels in often.items() if said not in there],
        "confirmed": [
            {"pattern": there[said], "evidence": labels} for said, labels in seen.items() if said in there
        ],
        "contradicted": [],
    }


def _labelled_lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        label, colon, said = line.partition(": ")
        if colon and said:
            yield label.split(" ")[0], said


def _known_entries(text: str) -> Iterator[dict[str, str]]:
    for line in text.split("\n"):  # JSON may hold the other ends of lines
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if (
            isinstance(row, dict)
            and isinstance(row.get("entry"), str)
            and isinstance(row.get("content"), str)
        ):
            yield row


def _operations(sentence: str, known: Sequence[Mapping[str, str]]) -> Iterator[dict[str, Any]]:
    if not sentence or len(sentence) > _MAX_CHARS or sentence.endswith("?"):
        return
    if match := _FORGET.match(sentence):
        if entry := _best_matching_entry(match[match.lastindex or 0], known):
            yield {"op": "forget", "entry": entry["entry"], "asked": True}
        return
    if match := _CORRECTION.search(sentence):
        old, new = (
            (match["old"] or match["old2"]).strip(_TRAILING_PUNCTUATION),
            (match["new"] or match["new2"]).strip(_TRAILING_PUNCTUATION),
        )
        if entry := _best_matching_entry(old, known):
            put = re.sub(re.escape(old), lambda _: new, entry["content"], count=1, flags=re.IGNORECASE)
            yield {
                "op": "replace",
                "entry": entry["entry"],
                "content": put if put != entry["content"] else new,
            }
        return
    if _NO_LONGER.search(sentence):
        if entry := _best_matching_entry(sentence, known):
            yield {"op": "forget", "entry": entry["entry"], "asked": False}
        return
    asked = _REMEMBER.match(sentence)
    if asked:  # verbatim, as the chat's `remember` tool keeps it
        yield _add_associative(asked[asked.lastindex or 0])
    else:
        yield from _operations_of_statement(sentence)


def _operations_of_statement(said: str) -> Iterator[dict[str, Any]]:
    for key, pattern in _FACT_PATTERNS:
        if match := pattern.match(said):
            yield _add_core(key, match[match.lastindex or 0])
            return
    if match := _KEYED_PREFERENCE.match(said.strip(_TRAILING_PUNCTUATION)):
        groups = {name.rstrip("234"): value for name, value in match.groupdict().items() if value}
        yield _add_core(groups["key"].lower(), groups["value"])
    elif _STATEMENTS.match(said):
        yield _add_associative(said)


def _add_associative(said: str) -> dict[str, Any]:
    return {"op": "add", "tier": "associative", "content": said.strip(_TRAILING_PUNCTUATION)}


def _add_core(key: str, value: str) -> dict[str, Any]:
    return {"op": "add", "tier": "core", "key": key, "content": value.strip(_TRAILING_PUNCTUATION)}


def _best_matching_entry(said: str, known: Sequence[Mapping[str, str]]) -> Mapping[str, str] | None:
    """Return the known entry that shares the most words with the text, or None if no entry shares any."""
    words = _words(said)
    fits = Counter(
        {
            place: len(words & _words(f"{row.get('key') or ''} {row['content']}"))
            for place, row in enumerate(known)
        }
    )
    best = fits.most_common(1)
    return known[best[0][0]] if best and best[0][1] else None


def _words(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.casefold()) if word not in _STOP_WORDS}
