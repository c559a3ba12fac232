"""Chat by rules: a small set of requests, each matched by its words and carried out with the tools on offer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from adiuva.embedded.offline_model import CHAT_MODEL, dates, results
from adiuva.embedded.offline_model.extraction import text as text_of
from adiuva.embedded.offline_model.toolbox import Toolbox, Wish

_MOST_CHARS = 2_000

WHAT_IT_IS = (
    f"I am {CHAT_MODEL}, a set of rules for trying Adiuva without a model. I am no language model: I know a few "
    "phrases and nothing else."
)
WHAT_IT_CAN = (
    "You can ask me to list or count your tasks, projects, notes, timelines or clients, what is due today, to add "
    'a task ("add a task to call Ada tomorrow"), to mark one as done or delete it, to search your notes, or to '
    "remember something. For anything more, configure a model: set ADIUVA_MODEL."
)


@dataclass(frozen=True)
class Answer:
    text: str = ""
    wishes: tuple[Wish, ...] = ()


@dataclass(frozen=True)
class Turn:
    """The latest request, and what the tools that were called for it have said."""

    request: str
    done: tuple[tuple[str, str], ...]  # (tool, result)
    tools: Toolbox
    today: date


def answer(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Answer:
    """The next step for the last user message: tools to call, or a text."""
    start = max(
        (place for place, message in enumerate(messages) if message.get("role") == "user"), default=-1
    )
    request = text_of(messages[start])[:_MOST_CHARS].strip() if start >= 0 else ""
    names = {
        call.get("id"): str((call.get("function") or {}).get("name"))
        for message in messages[start + 1 :]
        for call in message.get("tool_calls") or ()
    }
    done = tuple(
        (names.get(message.get("tool_call_id"), ""), text_of(message))
        for message in messages[start + 1 :]
        if message.get("role") == "tool"
    )
    turn = Turn(request, done, Toolbox(tools), datetime.now(UTC).date())
    for pattern, intent in _INTENTS:
        match = pattern.search(request)
        if match is not None and (found := intent(turn, match)) is not None:
            return found
    if done:
        return Answer(results.told(done))
    if _GREETING.match(request):
        return Answer(f"Hello! {WHAT_IT_IS} {WHAT_IT_CAN}")
    return Answer(f"{WHAT_IT_IS} {WHAT_IT_CAN}")


# ── The requests ────────────────────────────────────────────────────────────────────────────────────────


def _create(turn: Turn, match: re.Match[str]) -> Answer | None:
    kind = match["kind"].lower().rstrip("s") if "kind" in match.re.groupindex else "task"
    kind = "task" if kind in {"to-do", "todo", "reminder", "to do"} else kind
    said = match["what"].strip(" .!\"'“”")
    if not said:
        return Answer(f"What is the {kind} to be called?")
    given: dict[str, Any] = {"title": said, "content": said}
    if kind == "task":
        given = _task(said, turn.today)
    elif kind == "note" and ":" in said:
        title, _, content = said.partition(":")
        given = {"title": title.strip(), "content": content.strip()}
    return _one_step(turn, f"create {kind}", given, f"Added the {kind} “{given['title']}”.")


def _task(said: str, today: date) -> dict[str, Any]:
    given: dict[str, Any] = {"status": "todo"}
    when = dates.due(said, today) or dates.mentioned(said, today)
    if when is not None:
        given["due"] = when.day
        rest = f"{said[: when.start].rstrip()} {said[when.end :].lstrip()}".strip(" ,.")
        said = re.sub(r"\s+(?:on|by|for|until|due)$", "", rest) or said
    if re.search(r"\b(?:urgent|asap|high priority)\b|!!", said, re.IGNORECASE):
        given["priority"] = "high"
    given["title"] = given["content"] = said[:1].upper() + said[1:]
    return given


def _change(turn: Turn, match: re.Match[str]) -> Answer | None:
    """Mark as done or delete: first the list, to find the id; then the change."""
    deleting = "delete" in match.re.groupindex and match["delete"] is not None
    wanted = match["what"].strip(" .!\"'“”")
    if not turn.done:
        return _call(
            turn, "list tasks", {"search": wanted} if turn.tools.takes("list tasks", "search") else {}
        )
    if len(turn.done) == 1:
        row = results.best(turn.done[0][1], wanted)
        if row is None:
            return Answer(f"I found no task like “{wanted}”, so I changed nothing.")
        if deleting:
            return _call(turn, "delete task", {"id": row.id})
        return _call(turn, "update task", {"id": row.id, "status": "done"})
    row = results.best(turn.done[0][1], wanted)
    title = row.title if row else wanted
    if results.failed(turn.done[-1][1]):
        return Answer(results.told(turn.done[-1:]))
    tag = f" <task>[{row.id}]</task>" if row and not deleting else ""
    return Answer(f"Deleted “{title}”." if deleting else f"Marked “{title}” as done.{tag}")


def _due_today(turn: Turn, match: re.Match[str]) -> Answer | None:
    return _look(turn, ["due today"]) or _look(turn, ["list tasks"])


def _search_notes(turn: Turn, match: re.Match[str]) -> Answer | None:
    if turn.done:
        return Answer(results.told(turn.done))
    query = match["what"].strip(" .?!\"'“”")
    return _call(turn, "search notes", {"query": query}) or _call(turn, "list notes", {"search": query})


def _remember(turn: Turn, match: re.Match[str]) -> Answer | None:
    fact = match["what"].strip(" .")
    return _one_step(turn, "remember", {"content": fact}, f"I will remember: {fact}.")


def _list(turn: Turn, match: re.Match[str]) -> Answer | None:
    said = turn.request.lower()
    kinds = [kind for kind, pattern in _KINDS.items() if pattern.search(said)]
    if not kinds:
        return None
    given: dict[str, Any] = {}
    if kinds == ["tasks"]:
        if re.search(r"\b(?:open|to do|todo|left|pending)\b", said):
            given["status"] = "todo"
        elif re.search(r"\bin progress\b", said):
            given["status"] = "in_progress"
        elif re.search(r"\b(?:done|finished|completed)\b", said):
            given["status"] = "done"
    return _look(turn, [f"list {kind}" for kind in kinds], given)


def _look(turn: Turn, wishes: list[str], given: Mapping[str, Any] | None = None) -> Answer | None:
    if turn.done:
        return Answer(results.told(turn.done))
    calls = [call for wish in wishes if (call := turn.tools.call(wish, given or {})) is not None]
    return Answer(wishes=tuple(calls)) if calls else None


def _call(turn: Turn, wish: str, given: Mapping[str, Any]) -> Answer | None:
    call = turn.tools.call(wish, given)
    return Answer(wishes=(call,)) if call is not None else None


def _one_step(turn: Turn, wish: str, given: Mapping[str, Any], success: str) -> Answer | None:
    if not turn.done:
        return _call(turn, wish, given)
    result = turn.done[-1][1]
    return Answer(
        results.told(turn.done) if results.failed(result) else f"{success} {results.tags([result])}".strip()
    )


Intent = Callable[[Turn, re.Match[str]], Answer | None]

_KINDS = {
    "tasks": re.compile(r"\b(?:tasks?|to-?dos?|to dos)\b"),
    "projects": re.compile(r"\bprojects?\b"),
    "notes": re.compile(r"\bnotes?\b"),
    "timelines": re.compile(r"\b(?:timelines?|milestones?|deadlines?)\b"),
    "clients": re.compile(r"\b(?:clients?|customers?)\b"),
}
_GREETING = re.compile(
    r"\s*(?:hi|hello|hey|good (?:morning|afternoon|evening)|hallo|ciao|bonjour)\b", re.IGNORECASE
)
_THING = r"(?P<kind>tasks?|to-?dos?|reminders?|notes?|projects?|clients?)"


def _compiled(*pairs: tuple[str, Intent]) -> list[tuple[re.Pattern[str], Intent]]:
    return [(re.compile(pattern, re.IGNORECASE | re.DOTALL), intent) for pattern, intent in pairs]


_INTENTS = _compiled(
    (
        r"^(?:please |can you |could you )?(?:add|create|make|write|new|take)\s(?:me\s)?(?:an?\s|the\s|new\s){0,2}"
        rf"{_THING}"
        r"(?:\s(?:to|for|about|called|named|that says)\b|\s?[:–-])?\s*(?P<what>.*)",
        _create,
    ),
    (r"^(?:please )?remind me to\s(?P<what>.+)", _create),
    (r"^(?:please )?(?P<delete>delete|remove)\s(?:the |my )?(?:task|to-?do)\s(?P<what>.+)", _change),
    (
        r"^(?:please |can you )?(?:mark|set|tick off|tick)\s(?:the |my )?(?:task )?(?P<what>.+?)\s"
        r"(?:as |to )?(?:done|complete|completed|finished)\b",
        _change,
    ),
    (r"^(?:please )?(?:complete|finish|close|tick off)\s(?:the )?(?:task )?(?P<what>.+)", _change),
    (r"^i(?:'ve| have)? (?:finished|completed|done)\s(?:the task )?(?P<what>.+)", _change),
    (r"^(?:please )?(?:remember|keep in mind|don't forget)\s(?:that )?(?P<what>.+)", _remember),
    (
        r"\bdue today\b|\btoday'?s tasks\b|\bwhat (?:do|should|must) i (?:have to )?do today\b|\btoday\b.*\btasks?\b",
        _due_today,
    ),
    (r"\bwhat do (?:my|the) notes say (?:about|on)\s(?P<what>.+)", _search_notes),
    (
        r"\b(?:search|look through|find)\s(?:in )?(?:my |the )?notes?\s(?:for|about|on)\s(?P<what>.+)",
        _search_notes,
    ),
    (r"\b(?:list|show|what|which|how many|count|any|do i have|give me|tell me|see|my|all)\b", _list),
)
