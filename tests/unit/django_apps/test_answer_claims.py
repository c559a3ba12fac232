"""Answers that claim a change, and answers that do not."""

from __future__ import annotations

import pytest

from chat.answer_claims import claims_a_change


@pytest.mark.parametrize(
    "text",
    [
        "Done! I've created the task <task>[t1]</task> for tomorrow.",
        "Sure.\nThe invoice was deleted.",
        "I have just moved it to Friday.",
        "The task has been marked as done. Anything else?",
        "Ich habe die Aufgabe „Ada anrufen“ für morgen angelegt.",
        "Der Termin wurde auf Freitag verschoben.",
        "J’ai ajouté la tâche au projet.",
        "La note a été supprimée.",
        "Ho creato l'attività per domani.",
        "La nota è stata eliminata.",
        "He añadido la tarea al proyecto.",
        "La tarea se ha marcado como hecha.",
    ],
)
def test_a_claim_is_found(text: str) -> None:
    assert claims_a_change(text)


@pytest.mark.parametrize(
    "text",
    [
        "You have three tasks due this week.",
        "I have not created anything yet.",
        "Nothing was changed.",
        "Shall I say that it was deleted?",
        "I can create it once the project has been created.",
        "Ich habe nichts geändert.",
        "Die Aufgabe wurde nicht gelöscht.",
        "Je n'ai rien supprimé.",
        "Non ho creato nulla.",
        "No he borrado nada.",
        "",
    ],
)
def test_what_is_none_is_not(text: str) -> None:
    assert not claims_a_change(text)
