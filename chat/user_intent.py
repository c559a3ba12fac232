"""Checks that the user's own words ask for a change that the model wants to make.

After a turn has read text that the user did not write, the model may act for that text. So whatever it then writes must
be found in the user's words: the wish to write something, the row that is meant, and each value. The check compares
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
# Words with the same beginning count as forms of one: "invoices" and "invoice".
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
# First letters of words that ask to run an agent, and to stop one.
_RUN_WORDS: Final[tuple[str, ...]] = tuple(
    """
    run start launch trigger execut ausfuhr fuhr lauf lanc lanz demarr tourn avvi esegu arranc ejecut
    inici
    """.split()  # noqa: SIM905  # readable as a paragraph
)
_STOP_WORDS: Final[tuple[str, ...]] = tuple(
    """
    stop cancel abort halt undo revert brich abbrech abbruch beend ruckgang arret annul interr interromp
    ferm deten anul deshac deshaz
    """.split()  # noqa: SIM905  # readable as a paragraph
)
# The first words of sentences that ask for knowledge, and of questions that ask for a deed, without accents.
_ASKING: Final = frozenset(
    """
    what when which who whose why how where did does is are was were has have had
    wann welche welcher welches wer warum wie wo woher hat haben hatte ist sind war lauft lief
    quel quelle quels quelles quand qui pourquoi comment est
    cosa che quando chi perche come dove quale quali
    que cuando quien cual como donde esta
    """.split()  # noqa: SIM905  # readable as a paragraph
)
_POLITE: Final = frozenset(
    """
    please can could would will bitte kannst konntest wurdest konnen peux pourrais pouvez pourriez puoi
    potresti puedes podrias
    """.split()  # noqa: SIM905  # readable as a paragraph
)
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+|\n")
_AGENT_WORDS: Final[tuple[str, ...]] = ("agent", "agente", "agenti")
# Words that people use to and about agents, even where they call them by name alone or "it". They decide what a model
# is offered: a word too many costs tokens, one too few a detour.
_WORDS_ABOUT_AGENTS: Final[tuple[str, ...]] = tuple(
    """
    agent run start stop find found schedul every daily hourly weekday inbox mail folder gmail outlook teams
    gefunden lauf lass postfach ordner zeitplan jede taglich stundlich werktag halt
    lance demarr arret trouve boite dossier courri chaque tous
    avvia esegui ferma trovat cartell posta casell ogni
    ejecut inici deten encontr carpeta correo buzon cada diari
    """.split()  # noqa: SIM905  # readable as a paragraph
)
_DATE_ARGUMENTS: Final = frozenset({"due_date", "date"})


class UserWords:
    """The user's words, and what they may be taken to want."""

    def __init__(self, texts: Iterable[str], *, agreed: bool = False) -> None:
        """`agreed`: the user has just said yes to the last of these texts, a question of the assistant's."""
        self._said = "\n".join(texts)
        self._agreed = agreed
        self._words = _words(self._said)
        self._stems = {word[:_STEM_CHARS] for word in self._words}

    @property
    def want_change(self) -> bool:
        """True if the words ask for any change, or agree to one."""
        return self._agreed or self._has_start_of(_WISHES)

    @property
    def may_be_about_agents(self) -> bool:
        return self._has_start_of(_WORDS_ABOUT_AGENTS)

    def ask_for(self, title: str | None, values: Mapping[str, Any], named: Sequence[str] = ()) -> bool:
        """Return whether the words ask for a write.

        `title`: that of the row that is changed; None for a new row, and for one that the user is looking at. `values`:
        the call's arguments, without the row's id. `named`: the titles of rows that `values` refer to.
        """
        if not self.want_change:
            return False
        if title is not None and not self._say(title):
            return False
        return all(self._ask_for_value(name, value, named) for name, value in values.items() if value)

    def want_run(self, name: str, *, misled: bool, is_only: bool) -> bool:
        """Return whether the words ask to run an agent, by name or otherwise.

        `misled`: a text of others may want it, so the name alone is not enough, nor a word for running alone, nor one
        in a question such as "when did it last run?". `is_only`: the user has no other agent that could be meant.
        """
        return self._want_with_agent(_RUN_WORDS, name, misled=misled, is_only=is_only)

    def want_stop(self, name: str, *, misled: bool, is_only: bool) -> bool:
        """Return whether the words ask to stop an agent; the parameters are those of `want_run`."""
        return self._want_with_agent(_STOP_WORDS, name, misled=misled, is_only=is_only)

    def want_set_up(self, *, misled: bool) -> bool:
        """Return whether the words may ask to make or change an agent; if `misled`, one sentence must order it."""
        orders = [UserWords([sentence]) for sentence in self._orders(_WISHES)]
        return not misled or any(order.want_change and order._has_start_of(_AGENT_WORDS) for order in orders)

    def _want_with_agent(self, verbs: Iterable[str], name: str, *, misled: bool, is_only: bool) -> bool:
        names = self._say(name)
        if not misled:
            return names or self._has_start_of(verbs)
        asks = UserWords(self._orders(verbs))._has_start_of(verbs)
        return asks and (names or (is_only and self._has_start_of(_AGENT_WORDS)))

    def _orders(self, verbs: Iterable[str]) -> list[str]:
        """Return the sentences that do not ask for knowledge."""
        found = []
        for sentence in _SENTENCE_END.split(self._said):
            if not (words := _ordered_words(sentence)) or words[0] in _ASKING:
                continue
            if sentence.rstrip().endswith("?") and not (
                words[0] in _POLITE or words[0].startswith(tuple(verbs))
            ):
                continue
            found.append(sentence)
        return found

    def _ask_for_value(self, name: str, value: Any, named: Sequence[str]) -> bool:
        if name in _DATE_ARGUMENTS:
            return any(letter.isdigit() for letter in self._said) or self._has_start_of(_DAY_WORDS)
        if isinstance(value, str) and value in _VALUE_WORDS:
            return self._has_start_of(_VALUE_WORDS[value])
        if name.endswith("_id"):
            return any(self._say(title) for title in named)
        return self._say(value if isinstance(value, str) else orjson.dumps(value).decode())

    def _say(self, text: str) -> bool:
        """Return whether the words of a text are the user's, and all its numbers and addresses."""
        words = _words(text) - _FILLERS
        if not words:
            return False
        exact = {word for word in words if any(letter.isdigit() for letter in word)}
        known = {word for word in words if word in self._words or word[:_STEM_CHARS] in self._stems}
        return exact <= self._words and len(known) >= _MIN_SHARE * len(words)

    def _has_start_of(self, starts: Iterable[str]) -> bool:
        return any(word.startswith(tuple(starts)) for word in self._words)


def _words(text: str) -> set[str]:
    return set(_ordered_words(text))


def _ordered_words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text.casefold())
    return _WORD.findall("".join(letter for letter in plain if not unicodedata.combining(letter)))
