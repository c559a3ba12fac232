"""Questions of the user about themself, answered with what the prompt remembers of them."""

from __future__ import annotations

import re
from typing import NamedTuple

from adiuva.offline_model.turn import Answer, Turn

_MOST_LINES = 3
# `- [m1] rate: 90 francs (since 2026-11-02)` is core, `- [m2] I bill monthly (said on 2026-11-02)` is what they said.
# Episodes are left out: they repeat all that was said, earlier questions too.
_LINE = re.compile(r"^- \[m\d+\] (?P<said>.*) \((?:(?P<core>since)|said on) \d{4}-\d\d-\d\d\)$", re.MULTILINE)
_EVERYTHING = re.compile(
    r"\b(?:know|remember|remembered|learned) (?:about|of) me\b|\bwho am i\W*$"
    r"|\bwei(?:ß|ss)t du (?:alles )?(?:über|von) mich\b|\bwer bin ich\W*$|\b(?:sai|ricordi) di me\b|\bchi sono\W*$",
    re.IGNORECASE,
)
# What is asked with other words than those that the value is kept under.
_ASKED_WITH = {
    "name": "heiße chiamo",
    "home": "live wohne abito vivo",
    "work": "job arbeite lavoro",
    "rate": "bill charge berechne fatturo",
}
_WORD = re.compile(r"\w{3,}")
_ENDING = re.compile(r"(?<=\w{3})(?:s|ed|ing|ly)$")
_STEM = 6


class Line(NamedTuple):
    said: str
    core: bool


def recall(turn: Turn, match: re.Match[str]) -> Answer | None:
    """The lines that share a word with the question, best first; for "what do you know about me?" all that is core."""
    lines = [Line(found["said"], found["core"] is not None) for found in _LINE.finditer(turn.memory)]
    if _EVERYTHING.search(turn.request):
        fit = [line for line in lines if line.core] or lines[:_MOST_LINES]
    else:
        asked = _words(turn.request)
        shared = {line: len(asked & _words_of(line)) for line in lines}
        fit = sorted(filter(shared.get, shared), key=shared.__getitem__, reverse=True)[:_MOST_LINES]
    return Answer("\n".join(map(_told, fit))) if fit else None


def _told(line: Line) -> str:
    return line.said[:1].upper() + line.said[1:] if line.core else f"You told me: {line.said}"


def _words_of(line: Line) -> set[str]:
    key = line.said.partition(":")[0]
    return _words(f"{line.said} {_ASKED_WITH.get(key, '')}" if line.core else line.said)


def _words(text: str) -> set[str]:
    return {_stem(word) for word in _WORD.findall(text.casefold())} - _COMMON


def _stem(word: str) -> str:
    return _ENDING.sub("", word)[:_STEM]


# They tell nothing, or stand for rows that the device has.
_COMMON = frozenset(
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
