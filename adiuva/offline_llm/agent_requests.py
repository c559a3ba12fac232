"""Handles chat requests about agents, in five languages: list, run, read, schedule and stop them."""

from __future__ import annotations

import re
from typing import Any

from adiuva.offline_llm import tool_results
from adiuva.offline_llm.turn_state import Answer, TurnState

_WAIT_S = 60
# Matches the name of an agent, before or after the word: "my sample agent", "l'agent Clients", "den Beispiel-Agenten".
_ARTICLE = (
    r"(?:(?:my|the|this|that|mein(?:en|e|er)?|de[nr]|diesen|mon|ma|l[ea]s?|il|lo|la|mio|el|mi|al)\s|l['’]|all['’]"
    r"|de l['’])*"
)
# Words after "agent" that are not part of its name.
_NO_NAME = (
    r"and|und|et|e|y|every|each|now|jed\w*|chaque|tous|ogni|cada|todos|find|found|gefunden|trouvé|trovato|encontrado|a"
    r"|has|ha|hat|at|um|to|please|laufen|aus|an|daily|hourly|again"
)
_AGENT = (
    rf"{_ARTICLE}(?:(?P<before>[^\n?.,!]{{0,60}}?)[\s-]?(?:agente?n?s?|agenti)\b"
    r"(?:\s(?:called|named|namens|appelé|chiamato|llamado))?(?:\s[“\"«](?P<quoted>[^”\"»\n]{1,80})[”\"»])?"
    rf"(?P<after>(?:\s(?!(?:{_NO_NAME})\b)[\w-]+){{1,6}})?|[“\"«](?P<name>[^”\"»\n]{{1,80}})[”\"»])"
)
_IT = r"(?:it|this|that|them|ihn|es|sie|le|la|lo|l['’]|los|las)"
_START = (
    r"^(?:please |can you |could you |now |bitte |kannst du |peux-tu |puoi |puedes |s'il te plaît )*"
    r"(?:do a |make a |mach |fais |fai |haz )?(?P<dry>dry[ -])?"
    r"(?:run|start|launch|execute|starte?|lass|führe?|lance[rz]?|exécute[rz]?|démarre[rz]?|avvia(?:re)?|esegui(?:re)?"
    r"|lancia(?:re)?|ejecuta[r]?|inicia[r]?|lanza[r]?)"
)
_RUN = re.compile(rf"{_START}\b", re.IGNORECASE)
_MEANS_AGENT = re.compile(
    rf"{_START}(?:[- ]?l[eao])?(?:\s{_IT})?\s*(?:$|[.!,]|again\b|now\b|and\b|und\b|et\b|e\b|y\b|noch|every\b|each\b"
    r"|laufen\b|jed|chaque\b|ogni\b|cada\b)|agente?n?s?\b|agenti\b|[“\"«]",
    re.IGNORECASE,
)
_AND_WAIT = re.compile(
    r"\bwait\b|\bwart|\battend[sr]?e?\b|\baspetta|\bespera\b|\bund sag\b|\band (?:tell|show) me\b",
    re.IGNORECASE,
)
_LIST = re.compile(
    r"^(?:please )?(?:list|show|which|what|zeige?|welche|liste|quels?|affiche|montre|quali|mostra|elenca|qué|cuáles"
    r"|muestra|lista)\b[^?]{0,25}\b(?:agents|agenten|agenti|agentes)\b(?!.*\b(?:f[ou]+nd|gefunden|trouvé|trovato"
    r"|encontrado)\b)",
    re.IGNORECASE,
)
_OUTPUT = re.compile(
    r"\bwhat (?:did|has|have) (?P<en>.{1,60}?) (?:find|found)\b|\b(?:show me )?what (?P<en2>.{1,60}?) (?:has )?found\b"
    r"|\bhow did (?:the |its )?(?:last )?(?:run|it) go\b|\b(?:result|output)s? of (?P<en3>.{1,60}?agent\b.{0,60})"
    r"|\bwas hat (?P<de>.{1,60}?) gefunden\b"
    r"|\bqu(?:'|’)(?:a-t-(?:il|elle)|est-ce qu(?:'|’|e )(?P<fr>.{1,60}?) a) trouvé"
    r"|\bcosa ha trovato(?P<it>.{0,60})|\bqué (?:ha encontrado|encontró)(?P<es>.{0,60})",
    re.IGNORECASE,
)
_STOP = re.compile(
    r"^(?:please |bitte )?(?:(?P<undo>undo|take back)|stop|cancel|abort|stopp?e?|brich|halte?|arrête[rz]?|annule[rz]?"
    r"|ferma(?:re|lo)?|interrompi|detén(?:lo)?|para(?:lo)?|cancela)\b(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_MEANS_RUN = re.compile(
    rf"^\W*(?:{_IT}\b)?\W*(?:$|now\b|and\b|please\b|ab\b|an\b|und\b|et\b|y\b|bitte\b)|\bruns?\b|\bagente?n?\b|\blauf\b"
    r"|\bexécution\b|\besecuzione\b|\bejecución\b|\bwhat it did\b",
    re.IGNORECASE,
)
_UNDO = re.compile(
    r"\bundo\b|\btake back\b|\brückgängig\b|\bannule[rz]?\b.*\b(?:ce|tout)\b|\bannulla\b|\bdeshaz",
    re.IGNORECASE,
)
_NAME_OF_AGENT = re.compile(_AGENT, re.IGNORECASE)
_QUOTED = re.compile(r"“([^”\n]{1,80})”")
_LISTED = re.compile(r"^- “(?P<name>[^”\n]*)” \[(?P<id>[a-z]\d{1,4})\](?P<more>.*)$", re.MULTILINE)

# ── When ────────────────────────────────────────────────────────────────────────────────────────────────

_CLOCK = (
    r"\s*(?:,\s*)?(?:at|um|à|alle|all['’]|a las|a la)?\s*(?P<hour>\d{1,2})(?:(?::|\.|h)(?P<minute>\d{2}))?"
    r"\s*(?P<half>am|pm)?\s*(?:o'clock|uhr|h|heures?|horas)?\b"
)
_WEEKDAY_NAMES = (
    ("sunday", "sonntag", "dimanche", "domenica", "domingo"),
    ("monday", "montag", "lundi", "lunedì", "lunes"),
    ("tuesday", "dienstag", "mardi", "martedì", "martes"),
    ("wednesday", "mittwoch", "mercredi", "mercoledì", "miércoles"),
    ("thursday", "donnerstag", "jeudi", "giovedì", "jueves"),
    ("friday", "freitag", "vendredi", "venerdì", "viernes"),
    ("saturday", "samstag", "samedi", "sabato", "sábado"),
)
_DAY_NUMBERS = {name: number for number, names in enumerate(_WEEKDAY_NAMES) for name in names}
_EACH = r"(?:every|each|on|jede[nr]?|chaque|tous les|ogni|cada|todos los|los)"
_DAYS = (
    r"(?P<work>(?:every|each|on) (?:weekdays?|working days?|work days?)|weekdays|jeden (?:werktag|arbeitstag)|werktags"
    r"|(?:chaque jour ouvré|tous les jours (?:ouvrés|de la semaine)|en semaine)|ogni giorno (?:feriale|lavorativo)"
    r"|nei giorni (?:feriali|lavorativi)|cada día laborable|todos los días laborables|entre semana)"
    r"|(?P<daily>every (?:day|morning|evening)|each day|daily|jeden (?:tag|morgen|abend)|täglich|chaque (?:jour|matin)"
    r"|tous les (?:jours|matins)|ogni (?:giorno|mattina)|cada (?:día|mañana)|todos los días)"
    rf"|(?P<one>{_EACH} (?P<name>{'|'.join(_DAY_NUMBERS)})s?)"
    r"|(?P<hourly>every hour|hourly|jede stunde|stündlich|toutes les heures|ogni ora|cada hora)"
)
_WHEN = re.compile(rf"\b(?:{_DAYS})(?:{_CLOCK})?", re.IGNORECASE)
_BEGINS_WITH_WHEN = re.compile(rf"^\W*(?:and |then |und |et |e |y )*{_WHEN.pattern}", re.IGNORECASE)
_MEANS_SCHEDULE = re.compile(
    rf"{_START}|^(?:please |bitte )?(?:re)?schedul|\bagente?n?\b|^plane?\b|^planifie|^programm?a",
    re.IGNORECASE,
)
_DEFAULT_HOUR = 8


def schedule_of(text: str) -> str | None:
    """Return the cron expression that the text says in words, or None."""
    found = _WHEN.search(text)
    if found is None:
        return None
    if found["hourly"]:
        return "0 * * * *"
    hour, minute = int(found["hour"] or _DEFAULT_HOUR), int(found["minute"] or 0)
    half = (found["half"] or "").lower()
    if half:
        hour = hour % 12 + (12 if half == "pm" else 0)
    if hour > 23 or minute > 59:
        return None
    days = "1-5" if found["work"] else str(_DAY_NUMBERS[found["name"].lower()]) if found["one"] else "*"
    return f"{minute} {hour} * * {days}"


# ── Answering ───────────────────────────────────────────────────────────────────────────────────────────


def answer(turn: TurnState) -> Answer | None:
    """Return the next step if the request is about agents and tools for them are offered, else None."""
    said = " ".join(turn.request.split())
    schedule = schedule_of(said)
    if schedule and (_BEGINS_WITH_WHEN.match(said) or _MEANS_SCHEDULE.search(said)):
        return _with_agent(turn, _name_in(said), "set_up_agent", "agent", schedule=schedule)
    if _LIST.search(said):
        return _once(turn, "list_agents")
    if found := _OUTPUT.search(said):
        who = next(filter(None, found.groups()), "")
        return _once(turn, "view_agent_output", **_only(agent=_name_in(who), when=_day_in(said)))
    if (found := _STOP.match(said)) and _MEANS_RUN.search(found["rest"]):
        undo = {"undo": True} if _UNDO.search(said) else {}
        return _with_agent(turn, _name_in(found["rest"]), "stop_run", "run_or_agent", running=True, **undo)
    if (found := _RUN.match(said)) and _MEANS_AGENT.search(said):
        given: dict[str, Any] = {"dry_run": True} if found["dry"] else {}
        if _AND_WAIT.search(said):
            given["wait_for_result"] = _WAIT_S
        return _with_agent(turn, _name_in(said), "run_agent", "agent", **given)
    return None


def _once(turn: TurnState, tool: str, **arguments: Any) -> Answer | None:
    if turn.completed:
        return turn.describe_results()
    return turn.call_named(tool, arguments)


def _with_agent(
    turn: TurnState, name: str, tool: str, parameter: str, *, running: bool = False, **arguments: Any
) -> Answer | None:
    """Call the tool with the named agent; if none is named, with the only one, or the one that was spoken of."""
    if not turn.completed:
        return (
            turn.call_named(tool, {parameter: name, **arguments})
            if name
            else turn.call_named("list_agents", {})
        )
    done, result = turn.completed[-1]
    if done != "list_agents" or tool_results.is_failure(result):
        return Answer(tool_results.describe_results(turn.completed[-1:]))
    listed = list(_LISTED.finditer(result))
    spoken_of = set(_QUOTED.findall(turn.said_before))
    narrower = [each for each in listed if running and "is under way" in each["more"]] or [
        each for each in listed if each["name"] in spoken_of
    ]
    chosen = listed if len(listed) == 1 else narrower
    if len(chosen) == 1:
        return turn.call_named(tool, {parameter: chosen[0]["id"], **arguments})
    if not listed:
        return turn.describe_results()
    names = ", ".join(f"“{each['name']}”" for each in listed[:10])
    return Answer(f"Which agent do you mean? You have {names}.")


def _name_in(said: str) -> str:
    found = _NAME_OF_AGENT.search(re.sub(rf"{_START}\s", "", said, flags=re.IGNORECASE))
    if found is None:
        return ""
    candidates = found.group("quoted", "name", "before", "after")
    return next(filter(None, (_cleaned(text) for text in candidates if text)), "")


def _cleaned(name: str) -> str:
    name = name.strip()
    while (shorter := re.sub(rf"^(?:of\s|schedule\s|{_ARTICLE})", "", name, flags=re.IGNORECASE)) != name:
        name = shorter
    name = name.strip(" -")
    return "" if re.fullmatch(rf"(?:{_IT}|only|other|whole)?", name, re.IGNORECASE) else name


def _day_in(said: str) -> str:
    if re.search(r"\b(?:today|heute|aujourd|oggi|hoy)", said, re.IGNORECASE):
        return "today"
    return "yesterday" if re.search(r"\b(?:yesterday|gestern|hier|ieri|ayer)\b", said, re.IGNORECASE) else ""


def _only(**values: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}
