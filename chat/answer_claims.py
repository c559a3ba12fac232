"""Detects an answer's claim that something was changed.

A model may say "I have created the task" and call no tool. The turn knows its changes; if there are none, it searches
the answer for such a claim, in the languages that the server speaks. The search compares words and misses a claim in
other words. The note that the user then gets is true in any case.
"""

from __future__ import annotations

import re
from typing import Final

_ENGLISH = (
    "created added updated changed deleted removed marked moved renamed scheduled saved noted recorded completed "
    "archived assigned postponed set"
)
_GERMAN = (
    "erstellt angelegt hinzugefügt eingetragen geändert aktualisiert gelöscht entfernt verschoben markiert umbenannt "
    "gespeichert notiert erledigt abgeschlossen archiviert zugewiesen geplant gesetzt"
)
_FRENCH = (
    "créée?s? ajoutée?s? modifiée?s? mise?s? supprimée?s? effacée?s? déplacée?s? marquée?s? renommée?s? enregistrée?s? "
    "notée?s? archivée?s? planifiée?s? terminée?s?"
)
_ITALIAN = (
    "creat[oaie] aggiunt[oaie] modificat[oaie] aggiornat[oaie] eliminat[oaie] cancellat[oaie] rimoss[oaie] "
    "spostat[oaie] segnat[oaie] rinominat[oaie] salvat[oaie] annotat[oaie] archiviat[oaie] pianificat[oaie] "
    "impostat[oaie]"
)
_SPANISH = (
    "cread[oa]s? añadid[oa]s? agregad[oa]s? modificad[oa]s? actualizad[oa]s? eliminad[oa]s? borrad[oa]s? movid[oa]s? "
    "marcad[oa]s? renombrad[oa]s? guardad[oa]s? anotad[oa]s? archivad[oa]s? programad[oa]s? asignad[oa]s?"
)


def _any(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


_CLAIM: Final = re.compile(
    r"\b(?:"
    rf"I(?:['’]ve| have)?(?: (?:just|now|also|already|successfully))? {_any(_ENGLISH)}"
    rf"|(?:has been|have been|was|were) (?:now )?(?:successfully )?{_any(_ENGLISH)}"
    rf"|(?:habe|wurden?) (?:\S+ ){{0,12}}{_any(_GERMAN)}"
    rf"|(?:j['’]ai|ai|a été|ont été)(?: bien| maintenant)? {_any(_FRENCH)}"
    rf"|(?:ho|è stat[oa]|sono stat[ie])(?: appena| ora)? {_any(_ITALIAN)}"
    rf"|(?:he|ha sido|han sido|se ha|se han) {_any(_SPANISH)}"
    r")\b",
    re.IGNORECASE,
)
_NOT: Final = re.compile(
    r"\b(?:not|n['’]t|nothing|no|never|cannot|couldn|nicht|nichts|kein\w*|ne|n['’]|pas|rien|aucune?|non|nulla|niente|"
    r"nada|nunca|tampoco|if|once|when|wenn|sobald|si|quand|quando|cuando)\b",
    re.IGNORECASE,
)
_SENTENCE: Final = re.compile(r"[^.!?\n]+\??")


def claims_a_change(text: str) -> bool:
    """Return whether a sentence of the text claims a change. Denials and questions do not count."""
    return any(
        _CLAIM.search(sentence) and not _NOT.search(sentence) and not sentence.endswith("?")
        for sentence in _SENTENCE.findall(text)
    )
