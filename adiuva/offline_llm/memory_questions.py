"""Answers the user's questions about themselves from the memory lines in the prompt."""

from __future__ import annotations

import re
from typing import NamedTuple

from adiuva.offline_llm.turn_state import Answer, TurnState

_MAX_LINES = 3
_MAX_TOLD = 20
# `- [m1] rate: 90 francs (since 2026-11-02)` is a core fact, `- [m2] I bill monthly (said on 2026-11-02)` a statement.
# Episodes are ignored, because they also repeat the user's earlier questions.
_MEMORY_LINE = re.compile(
    r"^- \[m\d+\] (?P<said>.*) \((?:(?P<core>since)|said on) \d{4}-\d\d-\d\d\)$", re.MULTILINE
)
ASKS_FOR_EVERYTHING = (
    r"\b(?:know|remember|remembered|learned) (?:anything |everything |all )?(?:about|of) me\b|\bwho am i\W*$"
    r"|\bwei(?:ß|ss)t du (?:alles )?(?:über|von) mich\b|\bwei(?:ß|ss)t du von mir\b|\bwer bin ich\W*$"
    r"|\b(?:sai|ricordi) (?:\w+ )?di me\b|\bchi sono\W*$|\b(?:sais|savez)(?:-\w+)? (?:\w+ )?(?:sur|de) moi\b"
    r"|\b(?:sabes|recuerdas) (?:\w+ )?(?:de|sobre) mí\b"
)
# Words that people use for the value of a key, in place of the key itself.
_KEY_SYNONYMS = {
    "name": "heiße chiamo",
    "home": "live wohne abito vivo",
    "work": "job arbeite lavoro",
    "rate": "bill charge berechne fatturo",
}
_WORD = re.compile(r"\w{3,}")
_WORD_ENDING = re.compile(r"(?<=\w{3})(?:s|ed|ing|ly)$")
_STEM_CHARS = 6


class MemoryLine(NamedTuple):
    said: str
    core: bool


def answer_from_memory(turn: TurnState, match: re.Match[str]) -> Answer | None:
    """Tell the memory lines that share most words with the question."""
    lines = _lines(turn)
    asked = _words(turn.request)
    shared = {line: len(asked & _searchable_words(line)) for line in lines}
    fit = sorted(filter(shared.get, shared), key=shared.__getitem__, reverse=True)[:_MAX_LINES]
    return Answer("\n".join(map(_sentence, fit))) if fit else None


def tell_everything(turn: TurnState, match: re.Match[str]) -> Answer | None:
    """Tell all that the memory lines of the turn say, beginning with facts of one value."""
    lines = _lines(turn)
    if not lines:
        return Answer(
            "I know nothing about you yet. Tell me something to keep: “remember that I bill monthly”."
        )
    core, told = [line for line in lines if line.core], [line for line in lines if not line.core]
    said = [f"- {_sentence(line)}" for line in [*core, *told][:_MAX_TOLD]]
    more = [f"- and {len(lines) - _MAX_TOLD} more"] if len(lines) > _MAX_TOLD else []
    return Answer("\n".join(["This is what I know about you:", *said, *more]))


def _lines(turn: TurnState) -> list[MemoryLine]:
    return [
        MemoryLine(found["said"], found["core"] is not None) for found in _MEMORY_LINE.finditer(turn.memory)
    ]


def _sentence(line: MemoryLine) -> str:
    return line.said[:1].upper() + line.said[1:] if line.core else f"You told me: {line.said}"


def _searchable_words(line: MemoryLine) -> set[str]:
    key = line.said.partition(":")[0]
    return _words(f"{line.said} {_KEY_SYNONYMS.get(key, '')}" if line.core else line.said)


def _words(text: str) -> set[str]:
    return {_stem(word) for word in _WORD.findall(text.casefold())} - _STOP_WORDS


def _stem(word: str) -> str:
    return _WORD_ENDING.sub("", word)[:_STEM_CHARS]


# Words that do not help the search, and words for rows that are on the device.
_STOP_WORDS = frozenset(
    _stem(word)
    for word in """
    about again and any are been can could did does doing for from had has have how into its know known long
    many may mine more much must myself not now often one please remember should tell than that the them then
    there they thing this told too use used want was were what when where which who whose why will with would
    you your
    aber auch auf aus bei bin bitte das dass dem den der des dich die dir ein eine einen einer für habe hast
    hat ich ist kann mein meine meinem meinen meiner mich mir mit nicht noch oder sind soll über und von wann
    warum was weisst welche welchem welchen welcher welches wen wer wie will wir wird wollte zum zur
    alla che chi come con cosa dal dei del della devo dove dovrei gli hai ieri mia mie miei mio non per
    perché quale quali quando quanta quante quanti quanto ricordi sai sono sul una uno
    client customer deadline due list milestone note project task timeline today todo tomorrow week
    """.split()  # noqa: SIM905
)
