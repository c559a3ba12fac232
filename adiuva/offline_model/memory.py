"""What is worth remembering, by rules: sentences in which the user says plainly how something is, was, or should be."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adiuva.offline_model.extraction import text as text_of
from adiuva.offline_model.turn import fenced, fences

_MOST_CHARS = 300
_MOST_LINES = 12
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
_END = " .!;,:"
_FILLER = r"(?:(?:please|and|also|but|so|by the way|actually|well|ok|okay|bitte|und|e|poi)[ ,]+)*"


def _rule(*patterns: str) -> re.Pattern[str]:
    return re.compile(rf"^{_FILLER}(?:{'|'.join(patterns)})", re.IGNORECASE)


# What is said of one thing: the key, and the value as it was said.
_FACTS = [
    (
        "name",
        _rule(
            r"my name is (.+)",
            r"call me (.+)",
            r"ich hei(?:ß|ss)e (.+)",
            r"nenn mich (.+)",
            r"mi chiamo (.+)",
        ),
    ),
    (
        "home",
        _rule(
            r"i(?: now)? live in (.+)",
            r"i(?:'ve| have)? moved to (.+)",
            r"ich wohne in (.+)",
            r"(?:vivo|abito) a (.+)",
        ),
    ),
    (
        "work",
        _rule(
            r"i(?: now)? work (?:for|at|as) (.+)",
            r"ich arbeite (?:für|bei|als) (.+)",
            r"lavoro (?:per|come) (.+)",
        ),
    ),
    (
        "rate",
        _rule(
            r"i(?: now)? (?:bill|charge) (.+)",
            r"my (?:hourly |daily )?rate is (.+)",
            r"ich (?:berechne|nehme) (.+)",
        ),
    ),
]
_TOPIC = _rule(
    r"my (?P<key>favou?rite [\w -]{2,40}|preferred [\w -]{2,40}) is (?:now )?(?P<value>.+)",
    r"i prefer (?P<value2>.+?) (?:for|as) (?:my |the )?(?P<key2>[\w -]{2,40})$",
    r"ich bevorzuge (?P<value3>.+?) (?:für|als) (?P<key3>[\w -]{2,40})$",
    r"preferisco (?P<value4>.+?) (?:per|come) (?P<key4>[\w -]{2,40})$",
)
_SAYINGS = _rule(
    r"i (?:prefer|always|never|usually|like|hate|love|need|want you to) .+",
    r"from now on,? .+",
    r"(?:always|never) .+",
    r"ich (?:bevorzuge|mag|möchte immer|brauche) .+",
    r"(?:ab jetzt|immer|nie) .+",
    r"(?:preferisco|d'ora in poi|sempre|mai) .+",
)
_REMEMBER = _rule(
    r"(?:remember|keep in mind|don't forget|note)(?: that|:)? (.+)",
    r"merk dir(?:,? dass|:)? (.+)",
    r"ricorda(?:ti)?(?: che|:)? (.+)",
)
_FORGET = _rule(
    r"forget(?: that| about|:)? (.+)", r"vergiss(?:,? dass|:)? (.+)", r"dimentica(?: che|:)? (.+)"
)
_CHANGED = re.compile(
    r"\bnot (?P<old>.+?) any ?more,? but (?P<new>.+)|\bno longer (?P<old2>.+?),? but (?P<new2>.+)",
    re.IGNORECASE,
)
_OVER = re.compile(r"\b(?:no longer|not .+ any ?more|nicht mehr|non .+ più)\b", re.IGNORECASE)
_WORD = re.compile(r"\w{3,}")
_COMMON = frozenset(
    "that this the and any more not but longer now has have you are for with about forget".split()  # noqa: SIM905
)


def answer(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`{"operations": […]}` for what was said in the exchanges of the last message that has some."""
    asked = next((said for said in map(text_of, reversed(messages)) if fenced(said, "e1 user")), "")
    known = list(_known(fenced(asked, "known")))
    operations: list[dict[str, Any]] = []
    for name, said in fences(asked):
        label, _, who = name.partition(" ")
        if who == "user":
            for sentence in _SENTENCE.split(said):
                operations += [{**found, "said_in": label} for found in _operations(sentence.strip(), known)]
    return {"operations": operations}


def summary(messages: Sequence[Mapping[str, Any]], name: str, wish: str) -> dict[str, Any]:
    """`{"summary": …}` of a session or of notes: the beginnings of its lines."""
    material = fenced(text_of(messages[-1]), name) if messages else ""
    lines = [line.removeprefix("user: ").strip() for line in material.splitlines() if line.startswith(wish)]
    shown = [line if len(line) <= _MOST_CHARS else f"{line[:_MOST_CHARS]}…" for line in lines if line]
    return {"summary": "\n".join(shown[:_MOST_LINES])}


def patterns(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was noted three times or more in the same words is a pattern."""
    asked = text_of(messages[-1]) if messages else ""
    there = {said.casefold(): label for label, said in _labelled(fenced(asked, "patterns"))}
    seen: dict[str, list[str]] = {}
    for label, said in _labelled(fenced(asked, "entries")):
        seen.setdefault(said.casefold(), []).append(label)
    often = {said: labels for said, labels in seen.items() if len(labels) > 2}
    return {
        "new": [{"content": said, "evidence": labels} for said, labels in often.items() if said not in there],
        "confirmed": [
            {"pattern": there[said], "evidence": labels} for said, labels in seen.items() if said in there
        ],
        "contradicted": [],
    }


def _labelled(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        label, colon, said = line.partition(": ")
        if colon and said:
            yield label.split(" ")[0], said


def _known(text: str) -> Iterator[dict[str, str]]:
    for line in text.splitlines():
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
    if not sentence or len(sentence) > _MOST_CHARS or sentence.endswith("?"):
        return
    if match := _FORGET.match(sentence):
        if entry := _about(match[match.lastindex or 0], known):
            yield {"op": "forget", "entry": entry["entry"], "asked": True}
        return
    if match := _CHANGED.search(sentence):
        old, new = (match["old"] or match["old2"]).strip(_END), (match["new"] or match["new2"]).strip(_END)
        if entry := _about(old, known):
            put = re.sub(re.escape(old), lambda _: new, entry["content"], count=1, flags=re.IGNORECASE)
            yield {
                "op": "replace",
                "entry": entry["entry"],
                "content": put if put != entry["content"] else new,
            }
        return
    if _OVER.search(sentence):
        if entry := _about(sentence, known):
            yield {"op": "forget", "entry": entry["entry"], "asked": False}
        return
    asked = _REMEMBER.match(sentence)
    if asked:  # word for word, as the chat's own tool keeps it
        yield _saying(asked[asked.lastindex or 0])
    else:
        yield from _statement(sentence)


def _statement(said: str) -> Iterator[dict[str, Any]]:
    for key, pattern in _FACTS:
        if match := pattern.match(said):
            yield _core(key, match[match.lastindex or 0])
            return
    if match := _TOPIC.match(said.strip(_END)):
        groups = {name.rstrip("234"): value for name, value in match.groupdict().items() if value}
        yield _core(groups["key"].lower(), groups["value"])
    elif _SAYINGS.match(said):
        yield _saying(said)


def _saying(said: str) -> dict[str, Any]:
    return {"op": "add", "tier": "associative", "content": said.strip(_END)}


def _core(key: str, value: str) -> dict[str, Any]:
    return {"op": "add", "tier": "core", "key": key, "content": value.strip(_END)}


def _about(said: str, known: Sequence[Mapping[str, str]]) -> Mapping[str, str] | None:
    """The known entry that has the most words of this, if any has one."""
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
    return {word for word in _WORD.findall(text.casefold()) if word not in _COMMON}
