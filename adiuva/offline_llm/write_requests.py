"""Handles chat requests that create, change, delete or remember. Looks a row up by its title unless it is open."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from typing import Any

from adiuva.offline_llm import dates, read_requests, tool_results
from adiuva.offline_llm.tool_results import Row
from adiuva.offline_llm.turn_state import Answer, TurnState

_SURROUNDING_PUNCTUATION = " .,!?\"'“”„"
_KIND_SYNONYMS = {"to-do": "task", "todo": "task", "to do": "task", "reminder": "task"}
_KIND_SYNONYMS |= {"timeline entry": "timeline", "milestone": "timeline", "deadline": "timeline", "one": ""}
_CURRENT_ROW = re.compile(
    r"(?:this|that|it|this one|that one|(?:this|that|the) (?:row|entry|task|note|project|one))?", re.I
)
_ALL_ROWS = re.compile(
    r"(?:all|every|each)\b(?: of)?(?: my| the)?(?: (?P<state>open|done|finished|completed|in progress))?"
    r"(?: (?P<kind>tasks?|to-?dos?|projects?|notes?|timelines?|milestones?))?",
    re.IGNORECASE,
)
_IN_PROJECT = re.compile(
    r"(?P<rest>.+)\s(?:to|for|in|under|on|of)\s(?:the\s|my\s)?(?:project\s(?P<after>.+)|(?P<before>.+?)\sproject)",
    re.IGNORECASE | re.DOTALL,
)
_DATE_PREPOSITION = re.compile(r"\s*(?:\b(?:on|by|for|until|due|due on|due by),?|,)\s*\Z", re.IGNORECASE)
_TIME_OF_DAY = re.compile(
    r"\s*,?\s*(?:at|um)\s(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?\s?(?P<half>am|pm)?\b", re.I
)
_URGENT = re.compile(r"\b(?:urgent(?:ly)?|asap|important)\b|!!", re.IGNORECASE)
_PRIORITY = re.compile(
    r"(?:[,(]\s*|\b(?:with|at|as)\s(?:an?\s)?)?\b(?P<priority>high|medium|low)(?:est)?[ -]priority\b\)?", re.I
)
_STATUS_PATTERNS = {
    "done": re.compile(r"done|complete|completed|finished", re.IGNORECASE),
    "in_progress": re.compile(r"in progress|started", re.IGNORECASE),
    "todo": re.compile(r"to-?do|to do|open|not done|undone|unfinished", re.IGNORECASE),
}
_STATUS_LABELS = {"done": "done", "in_progress": "in progress", "todo": "to do"}
_MAX_CHANGED_ROWS = 30
_MAX_LISTED_RESULTS = 5
_MAX_TITLE_CHARS = 60


def kind_of_row(match: re.Match[str]) -> str:
    """Return the kind of row that a request names, or "task" if it names none."""
    said = (match.groupdict().get("kind") or "task").lower()
    return _KIND_SYNONYMS.get(said, _KIND_SYNONYMS.get(said.rstrip("s"), said.rstrip("s"))) or "task"


def _row_description(match: re.Match[str]) -> str:
    return re.sub(r"\A(?:about|called|named)\s", "", (match["what"] or "").strip(_SURROUNDING_PUNCTUATION))


# ── Creating ──────────────────────────────────────────────────────────────────────────────────────────────


def create(turn: TurnState, match: re.Match[str]) -> Answer | None:
    kind, said = kind_of_row(match), _row_description(match)
    if not said:
        return Answer(f"What is the {kind} to be called?")
    lookups = [result for tool, result in turn.completed if tool.startswith("list_")]
    if len(turn.completed) > len(lookups):
        return Answer(tool_results.describe_results(turn.completed[len(lookups) :]))
    title, when = _split_off_date(said, turn.today) if kind in {"task", "timeline"} else (said, None)
    given: dict[str, Any] = {}
    if kind in {"task", "timeline", "note"}:
        place = _IN_PROJECT.fullmatch(title) if ":" not in title else None
        if place is not None:
            wanted = (place["after"] or place["before"]).strip(_SURROUNDING_PUNCTUATION)
            if not lookups:
                return turn.call_tool("list projects", {"search": tool_results.search_words(wanted)})
            found = tool_results.best_matches(lookups[0], wanted)
            if tool_results.is_failure(lookups[0]):
                return turn.describe_results()
            if len(found) != 1:
                return Answer(_ask_which(found, "project", wanted, "added"))
            title, given["project"] = place["rest"].strip(_SURROUNDING_PUNCTUATION), found[0].id
        elif turn.scope is not None and turn.scope.kind == "project":
            given["project"] = turn.scope.id
    if kind == "timeline":
        if when is None:
            return Answer("Which date is it?")
        if "project" not in given:
            return Answer("Which project does the date belong to? Name it as “… for the project …”.")
    return turn.call_tool(f"create {kind}", given | _new_row_values(kind, title, when, match.group(0)))


def _new_row_values(kind: str, title: str, when: date | None, request: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if kind == "note":
        head, colon, content = title.partition(":")
        return {
            "title": _short_title(head if colon else title),
            "content": (content if colon else title).strip(),
        }
    if kind == "task":
        given["status"] = "todo"
        named = _PRIORITY.search(request)
        if named or _URGENT.search(request):
            given["priority"] = named["priority"].lower() if named else "high"
        title = _URGENT.sub("", _PRIORITY.sub("", title))
        title = re.sub(
            r"\A(?:that i (?:must|should|have to|need to)|to)\s",
            "",
            title.strip(_SURROUNDING_PUNCTUATION),
            flags=re.I,
        )
    title = " ".join(title.split()).strip(_SURROUNDING_PUNCTUATION) or "Untitled"
    given["title"] = given["content"] = title[:1].upper() + title[1:]
    if when is not None:
        given["due"] = when
    return given


def _split_off_date(said: str, today: date) -> tuple[str, date | None]:
    """Return the text without its date, and the date, as a datetime if a time of day follows it."""
    found = dates.due_date(said, today) or dates.first_date(said, today)
    if found is None:
        return said, None
    before, after = _DATE_PREPOSITION.sub("", said[: found.start]), said[found.end :]
    day: date = found.day
    if clock := _TIME_OF_DAY.match(after):
        hour = (
            int(clock["hour"]) % 12 + 12 * (clock["half"].lower() == "pm")
            if clock["half"]
            else int(clock["hour"])
        )
        if hour < 24 and int(clock["minute"] or 0) < 60:
            day, after = (
                datetime.combine(found.day, time(hour, int(clock["minute"] or 0))),
                after[clock.end() :],
            )
    rest = f"{before.rstrip()} {after.lstrip()}".replace(" ,", ",").strip(_SURROUNDING_PUNCTUATION)
    return rest or said, day


def remember(turn: TurnState, match: re.Match[str]) -> Answer | None:
    """Keep a fact in the memory, or in a note if no memory tool is offered, and tell which."""
    fact = _row_description(match)
    if not turn.completed:
        note = {"title": _short_title(fact), "content": fact}
        return turn.call_tool("remember", {"content": fact}) or turn.call_tool("create note", note)
    tool, result = turn.completed[-1]
    if tool_results.is_failure(result):
        return turn.describe_results()
    if "note" not in tool:
        return Answer(f"I will remember: {fact}.")
    shown = tool_results.entity_tag("note", (row.id for row in tool_results.parse_rows(result)))
    return Answer(f"I have no memory here, so I kept it as a note: {fact}. {shown}".strip())


def _short_title(text: str) -> str:
    words = " ".join(text.split())
    words = words if len(words) <= _MAX_TITLE_CHARS else f"{words[:_MAX_TITLE_CHARS].rsplit(' ', 1)[0]}…"
    return words[:1].upper() + words[1:]


# ── Changing ────────────────────────────────────────────────────────────────────────────────────────────


def set_status(turn: TurnState, match: re.Match[str]) -> Answer | None:
    said = match.groupdict().get("status") or "done"
    found = next((name for name, pattern in _STATUS_PATTERNS.items() if pattern.fullmatch(said)), "done")
    told = f"Marked {{}} as {_STATUS_LABELS[found]}."
    return _find_and_apply(turn, "update", "task", _row_description(match), {"status": found}, told)


def rename(turn: TurnState, match: re.Match[str]) -> Answer | None:
    title = match["title"].strip(_SURROUNDING_PUNCTUATION)
    kind = _kind_of_current_row(turn, kind_of_row(match), _row_description(match), match["kind"])
    return _find_and_apply(
        turn, "update", kind, _row_description(match), {"title": title}, f"{{}} is now called “{title}”."
    )


def reschedule(turn: TurnState, match: re.Match[str]) -> Answer | None:
    """Move a row to another date."""
    _, when = _split_off_date(f"x {match['when']}", turn.today)
    if when is None:
        return None
    kind = _kind_of_current_row(turn, kind_of_row(match), _row_description(match), match["kind"])
    told = f"{{}} is now due {when:%a %Y-%m-%d}." if kind == "task" else f"{{}} is now on {when:%a %Y-%m-%d}."
    return _find_and_apply(turn, "update", kind, _row_description(match), {"due": when}, told)


def set_priority(turn: TurnState, match: re.Match[str]) -> Answer | None:
    level = match["priority"].lower()
    told = f"{{}} has {level} priority now."
    return _find_and_apply(turn, "update", "task", _row_description(match), {"priority": level}, told)


def archive(turn: TurnState, match: re.Match[str]) -> Answer | None:
    return _find_and_apply(
        turn, "update", "project", _row_description(match), {"status": "archived"}, "Archived {}."
    )


def add_comment(turn: TurnState, match: re.Match[str]) -> Answer | None:
    text = match["text"].strip()
    wanted = (match.groupdict().get("what") or "").strip(_SURROUNDING_PUNCTUATION)
    return _find_and_apply(
        turn,
        "create",
        "task",
        wanted,
        {"content": text},
        "Added the comment to {}.",
        operation="create comment",
    )


def delete(turn: TurnState, match: re.Match[str]) -> Answer | None:
    kind = _kind_of_current_row(turn, kind_of_row(match), _row_description(match), match["kind"])
    return _find_and_apply(turn, "delete", kind, _row_description(match), {}, "Deleted {}.")


def run_confirmed_calls(turn: TurnState) -> Answer:
    """Make exactly the calls that the user confirmed, once, then tell the results."""
    if not turn.completed:
        return Answer(tool_calls=turn.confirmed)
    done = [(tool, result) for tool, result in turn.completed if not tool_results.is_failure(result)]
    if len(done) <= _MAX_LISTED_RESULTS:
        return turn.describe_results()
    tool = done[0][0]
    verb, kind = "Deleted" if tool.startswith("delete") else "Changed", tool_results.kind_of_tool(tool)
    failed = [pair for pair in turn.completed if tool_results.is_failure(pair[1])]
    return Answer(
        " ".join(filter(None, [f"{verb} {len(done)} {kind}s.", tool_results.describe_results(failed)]))
    )


def _kind_of_current_row(turn: TurnState, kind: str, wanted: str, named: str | None) -> str:
    """Return the kind of the current row if the request means it and names no kind itself, else `kind`."""
    row = turn.scope or turn.mentioned
    return row.kind if not named and row is not None and _CURRENT_ROW.fullmatch(wanted) else kind


def _find_and_apply(
    turn: TurnState,
    verb: str,
    kind: str,
    wanted: str,
    given: Mapping[str, Any],
    told: str,
    *,
    operation: str = "",
) -> Answer | None:
    """Find the rows, apply the change to all in one round, and tell the outcome.

    `told` is the sentence for success; its `{}` is replaced by the title or the number of rows.
    """
    every = _ALL_ROWS.fullmatch(wanted)
    if every is not None and every["kind"]:
        named = every["kind"].lower().rstrip("s")
        kind = _KIND_SYNONYMS.get(named, named)
    here = turn.scope if turn.scope is not None else turn.mentioned
    if here is not None and here.kind == kind and _CURRENT_ROW.fullmatch(wanted):
        rows, acted = [here], turn.completed
    elif _CURRENT_ROW.fullmatch(wanted):
        return Answer(f"Which {kind} do you mean?")
    elif not turn.completed:
        return turn.call_tool(f"list {kind}s", _list_filters(turn, kind, wanted, every, verb))
    else:
        listed, acted = turn.completed[0][1], turn.completed[1:]
        if tool_results.is_failure(listed):
            return turn.describe_results()
        rows = (
            tool_results.parse_rows(listed)[:_MAX_CHANGED_ROWS]
            if every
            else tool_results.best_matches(listed, wanted)
        )
        if not rows or (len(rows) > 1 and not every):
            return Answer(_ask_which(rows, kind, wanted, "changed"))
    if acted:
        return Answer(_describe_outcome(acted, rows, kind, told, deleting=verb == "delete"))
    calls = [turn.tools.build_call(operation or f"{verb} {kind}", {"id": row.id, **given}) for row in rows]
    return Answer(tool_calls=tuple(call for call in calls if call is not None)) if all(calls) else None


def _list_filters(
    turn: TurnState, kind: str, wanted: str, every: re.Match[str] | None, verb: str
) -> dict[str, Any]:
    """Return the filters that keep the list short and still include the rows that are meant."""
    if every is None:
        words = tool_results.search_words(wanted)
        return {"search": words} if words and turn.tools.accepts(f"list {kind}s", "search") else {}
    said = every["state"] or ("open" if verb == "update" else "")
    found = read_requests.task_status(turn, said.lower()) if said and kind == "task" else None
    return {"status": found} if found else {}


def _ask_which(rows: Sequence[Row], kind: str, wanted: str, verb: str) -> str:
    if not rows:
        return f"I found no {kind} like “{wanted}”, so I {verb} nothing."
    named = ", ".join(f"“{row.title}”" for row in rows)
    return (
        f"Which one do you mean: {named}? {tool_results.entity_tag(kind, (row.id for row in rows))}".strip()
    )


def _describe_outcome(
    acted: Sequence[tuple[str, str]], rows: Sequence[Row], kind: str, told: str, *, deleting: bool
) -> str:
    """Tell what was done, what awaits confirmation, what was declined, and what failed and why."""
    said = [result for _, result in acted]
    done = [
        (row, result) for row, result in zip(rows, said, strict=False) if not tool_results.is_failure(result)
    ]
    parts = []
    if done:
        titles = [row.title or _title_in_result(result) for row, result in done]
        what = f"“{titles[0]}”" if len(done) == 1 else f"{len(done)} {kind}s"
        parts.append(told.format(what))
        if not deleting:
            parts.append(tool_results.entity_tag(kind, (row.id for row, _ in done)))
    if any(map(tool_results.needs_confirmation, said)):
        parts.append(tool_results.AWAITS_CONFIRMATION)
    if any(map(tool_results.was_declined, said)):
        parts.append(
            "As you wish: nothing more was changed." if done else "As you wish: nothing was changed."
        )
    other = [
        tool_results.failure_reason(result)
        for result in said
        if tool_results.is_failure(result)
        and not tool_results.needs_confirmation(result)
        and not tool_results.was_declined(result)
    ]
    if other:
        parts.append(f"That did not work: {'; '.join(dict.fromkeys(other))}")
    return " ".join(filter(None, parts))


def _title_in_result(result: str) -> str:
    """Return the title in the result of a write, or "it"."""
    found = tool_results.parse_rows(result)
    return found[0].title if found else "it"
