"""Whether the user's own words ask for a change that the model wants to make.

After a turn has read text that the user did not write, the model may act for that text. So what it then writes must be
found in the user's words: that something is to be written, the row that is meant, and each value. It is a comparison of
words and knows some languages; where it does not understand, the answer is no, and the user is asked.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

# The share of a text's words that the user must have said.
_MIN_SHARE: Final = 0.7
# Words that start alike are taken for forms of one: "invoices" and "invoice".
_STEM_CHARS: Final = 5
_WORD = re.compile(r"[^\W_]+")
_FILLERS: Final[frozenset[str]] = frozenset(
    """
    a an the to of for in on at and or with by from der die das ein eine zu und mit von im am le la les
    un une de du des et il lo gli i di da e con per el los las una y que
    """.split()  # noqa: SIM905  # readable as a paragraph
)
# The first letters of words that ask for a change, without accents.
_WISHES: Final[tuple[str, ...]] = tuple(
    """
    add creat make new note write writ jot remind remember schedul plan put set chang updat mark complet
    finish done close reopen renam mov assign unassign extend shorten rewrit replac append archiv
    postpon reschedul prioriti fix correct edit clear start log record book file save track import turn
    convert erstell anleg leg neu notier schreib erinner setz ander andere aktualisier markier erledig
    abschlie umbenenn verschieb zuweis erganz erfass trag mach speicher hinzu ajout cre not ecri rappel
    planifi met mettr modifi marqu termin renomm deplac enregistr aggiung crea nuov annot scriv ricord
    pianific mett imposta modific segn rinomin spost assegn registr anad agreg nuev anot escrib recuerd
    recordar pon cambi actualiz marc renombr muev asign guard adicion nov escrev lembr coloc mud atualiz
    conclu
    """.split()  # noqa: SIM905  # readable as a paragraph
)
_VALUE_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    value: tuple(starts.split())
    for value, starts in {
        "done": "done complet finish close tick check erledig fertig abgeschlossen abhak termin fini fait fatto hecho "
        "acab feit conclu",
        "in_progress": "progress start begin began doing working angefangen begonnen cours commenc corso inizi curso",
        "todo": "todo open reopen offen wieder ouvert rouvr aperto riapr abiert pendient",
        "high": "high urgent important asap hoch dringend wichtig haut alta urgen import prior",
        "medium": "medium normal mittel moyen media medi",
        "low": "low unimportant niedrig gering unwichtig bas baja bassa baix",
        "archived": "archiv close finish complet abschlie",
        "active": "active activ reopen unarchiv restor aktiv ouvr attiv",
        "none": "none remove clear without unassign delete no kein ohne entfern losch sans enlev retir senza togli sin",
    }.items()
}
_DAY_WORDS: Final[tuple[str, ...]] = tuple(
    """
    today tonight tomorrow monday tuesday wednesday thursday friday saturday sunday week month year day
    next jan feb mar apr may jun jul aug sep oct nov dec noon morning evening heute morgen ubermorgen
    montag dienstag mittwoch donnerstag freitag samstag sonntag woche monat tag aujourd demain lundi
    mardi mercredi jeudi vendredi samedi dimanche semaine mois jour oggi domani lunedi martedi mercoledi
    giovedi venerdi sabato domenica settimana mese giorno hoy manana lunes martes miercoles jueves
    viernes sabado domingo semana mes dia amanha segunda terca quarta
    """.split()  # noqa: SIM905  # readable as a paragraph
)
_DATE_ARGUMENTS: Final = frozenset({"due_date", "date"})


class UserWords:
    """What the user said, and so may be taken to want."""

    def __init__(self, texts: Iterable[str], *, agreed: bool = False) -> None:
        """`agreed`: the user has just said yes to the last of these texts, a question of the assistant's."""
        self._said = " ".join(texts)
        self._agreed = agreed
        self._words = _words(self._said)
        self._stems = {word[:_STEM_CHARS] for word in self._words}

    def ask_for(self, title: str | None, values: Mapping[str, Any], named: Sequence[str] = ()) -> bool:
        """Whether they ask for a write.

        `title`: of the row that is changed; None for a new row, and for one that the user is looking at. `values`: the
        call's arguments, without the row's id. `named`: the titles of rows that `values` refer to.
        """
        if not self._agreed and not self._has_start_of(_WISHES):
            return False
        if title is not None and not self._say(title):
            return False
        return all(self._ask_for_value(name, value, named) for name, value in values.items() if value)

    def _ask_for_value(self, name: str, value: Any, named: Sequence[str]) -> bool:
        if name in _DATE_ARGUMENTS:
            return any(letter.isdigit() for letter in self._said) or self._has_start_of(_DAY_WORDS)
        if isinstance(value, str) and value in _VALUE_WORDS:
            return self._has_start_of(_VALUE_WORDS[value])
        if name.endswith("_id"):
            return any(self._say(title) for title in named)
        return self._say(value if isinstance(value, str) else orjson.dumps(value).decode())

    def _say(self, text: str) -> bool:
        """Whether the words of a text are the user's, and all its numbers and addresses."""
        words = _words(text) - _FILLERS
        if not words:
            return False
        exact = {word for word in words if any(letter.isdigit() for letter in word)}
        known = {word for word in words if word in self._words or word[:_STEM_CHARS] in self._stems}
        return exact <= self._words and len(known) >= _MIN_SHARE * len(words)

    def _has_start_of(self, starts: Iterable[str]) -> bool:
        return any(word.startswith(tuple(starts)) for word in self._words)


def _words(text: str) -> set[str]:
    plain = unicodedata.normalize("NFKD", text.casefold())
    return set(_WORD.findall("".join(letter for letter in plain if not unicodedata.combining(letter))))
