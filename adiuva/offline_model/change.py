"""Requests that write: make, change, delete, remember. A row is found by its title first, unless it is at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from typing import Any

from adiuva.offline_model import dates, look, results
from adiuva.offline_model.results import Row
from adiuva.offline_model.turn import Answer, Turn

_TO_STRIP = " .,!?\"'“”„"
_NAMES_OF = {"to-do": "task", "todo": "task", "to do": "task", "reminder": "task"}
_NAMES_OF |= {"timeline entry": "timeline", "milestone": "timeline", "deadline": "timeline", "one": ""}
_THIS = re.compile(
    r"(?:this|that|it|this one|that one|(?:this|that|the) (?:row|entry|task|note|project|one))?", re.I
)
_ALL = re.compile(
    r"(?:all|every|each)\b(?: of)?(?: my| the)?(?: (?P<state>open|done|finished|completed|in progress))?"
    r"(?: (?P<kind>tasks?|to-?dos?|projects?|notes?|timelines?|milestones?))?",
    re.IGNORECASE,
)
_IN_PROJECT = re.compile(
    r"(?P<rest>.+)\s(?:to|for|in|under|on|of)\s(?:the\s|my\s)?(?:project\s(?P<after>.+)|(?P<before>.+?)\sproject)",
    re.IGNORECASE | re.DOTALL,
)
_LEADS_TO_DATE = re.compile(r"\s*(?:\b(?:on|by|for|until|due|due on|due by),?|,)\s*\Z", re.IGNORECASE)
_CLOCK = re.compile(r"\s*,?\s*(?:at|um)\s(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?\s?(?P<half>am|pm)?\b", re.I)
_URGENT = re.compile(r"\b(?:urgent(?:ly)?|asap|important)\b|!!", re.IGNORECASE)
_PRIORITY = re.compile(
    r"(?:[,(]\s*|\b(?:with|at|as)\s(?:an?\s)?)?\b(?P<priority>high|medium|low)(?:est)?[ -]priority\b\)?", re.I
)
_STATUSES = {
    "done": re.compile(r"done|complete|completed|finished", re.IGNORECASE),
    "in_progress": re.compile(r"in progress|started", re.IGNORECASE),
    "todo": re.compile(r"to-?do|to do|open|not done|undone|unfinished", re.IGNORECASE),
}
_STATUS_WORDS = {"done": "done", "in_progress": "in progress", "todo": "to do"}
_MOST_AT_ONCE = 30
_TOLD_ONE_BY_ONE = 5
_TITLE_CHARS = 60


def kind_of(match: re.Match[str]) -> str:
    """The kind of row that a request names; a task if none."""
    said = (match.groupdict().get("kind") or "task").lower()
    return _NAMES_OF.get(said, _NAMES_OF.get(said.rstrip("s"), said.rstrip("s"))) or "task"


def _wanted(match: re.Match[str]) -> str:
    return re.sub(r"\A(?:about|called|named)\s", "", (match["what"] or "").strip(_TO_STRIP))


# ── Making ──────────────────────────────────────────────────────────────────────────────────────────────


def create(turn: Turn, match: re.Match[str]) -> Answer | None:
    kind, said = kind_of(match), _wanted(match)
    if not said:
        return Answer(f"What is the {kind} to be called?")
    lookups = [result for tool, result in turn.done if tool.startswith("list_")]
    if len(turn.done) > len(lookups):
        return Answer(results.told(turn.done[len(lookups) :]))
    title, when = _without_date(said, turn.today) if kind in {"task", "timeline"} else (said, None)
    given: dict[str, Any] = {}
    if kind in {"task", "timeline", "note"}:
        place = _IN_PROJECT.fullmatch(title) if ":" not in title else None
        if place is not None:
            wanted = (place["after"] or place["before"]).strip(_TO_STRIP)
            if not lookups:
                return turn.call("list projects", {"search": results.key_words(wanted)})
            found = results.matching(lookups[0], wanted)
            if results.failed(lookups[0]):
                return turn.told()
            if len(found) != 1:
                return Answer(_which(found, "project", wanted, "added"))
            title, given["project"] = place["rest"].strip(_TO_STRIP), found[0].id
        elif turn.scope is not None and turn.scope.kind == "project":
            given["project"] = turn.scope.id
    if kind == "timeline":
        if when is None:
            return Answer("Which date is it?")
        if "project" not in given:
            return Answer("Which project does the date belong to? Name it as “… for the project …”.")
    return turn.call(f"create {kind}", given | _columns(kind, title, when, match.group(0)))


def _columns(kind: str, title: str, when: date | None, request: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if kind == "note":
        head, colon, content = title.partition(":")
        return {"title": _short(head if colon else title), "content": (content if colon else title).strip()}
    if kind == "task":
        given["status"] = "todo"
        named = _PRIORITY.search(request)
        if named or _URGENT.search(request):
            given["priority"] = named["priority"].lower() if named else "high"
        title = _URGENT.sub("", _PRIORITY.sub("", title))
        title = re.sub(
            r"\A(?:that i (?:must|should|have to|need to)|to)\s", "", title.strip(_TO_STRIP), flags=re.I
        )
    title = " ".join(title.split()).strip(_TO_STRIP) or "Untitled"
    given["title"] = given["content"] = title[:1].upper() + title[1:]
    if when is not None:
        given["due"] = when
    return given


def _without_date(said: str, today: date) -> tuple[str, date | None]:
    """The text without its date, and the date, with a time if one follows."""
    found = dates.due(said, today) or dates.mentioned(said, today)
    if found is None:
        return said, None
    before, after = _LEADS_TO_DATE.sub("", said[: found.start]), said[found.end :]
    day: date = found.day
    if clock := _CLOCK.match(after):
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
    rest = f"{before.rstrip()} {after.lstrip()}".replace(" ,", ",").strip(_TO_STRIP)
    return rest or said, day


def remember(turn: Turn, match: re.Match[str]) -> Answer | None:
    """Keep a fact: in the memory if there is one, else as a note, and say which."""
    fact = _wanted(match)
    if not turn.done:
        note = {"title": _short(fact), "content": fact}
        return turn.call("remember", {"content": fact}) or turn.call("create note", note)
    tool, result = turn.done[-1]
    if results.failed(result):
        return turn.told()
    if "note" not in tool:
        return Answer(f"I will remember: {fact}.")
    shown = results.tag("note", (row.id for row in results.rows(result)))
    return Answer(f"I have no memory here, so I kept it as a note: {fact}. {shown}".strip())


def _short(text: str) -> str:
    words = " ".join(text.split())
    words = words if len(words) <= _TITLE_CHARS else f"{words[:_TITLE_CHARS].rsplit(' ', 1)[0]}…"
    return words[:1].upper() + words[1:]


# ── Changing ────────────────────────────────────────────────────────────────────────────────────────────


def status(turn: Turn, match: re.Match[str]) -> Answer | None:
    said = match.groupdict().get("status") or "done"
    found = next((name for name, pattern in _STATUSES.items() if pattern.fullmatch(said)), "done")
    told = f"Marked {{}} as {_STATUS_WORDS[found]}."
    return _carry_out(turn, "update", "task", _wanted(match), {"status": found}, told)


def rename(turn: Turn, match: re.Match[str]) -> Answer | None:
    title = match["title"].strip(_TO_STRIP)
    kind = _at_hand(turn, kind_of(match), _wanted(match), match["kind"])
    return _carry_out(
        turn, "update", kind, _wanted(match), {"title": title}, f"{{}} is now called “{title}”."
    )


def move(turn: Turn, match: re.Match[str]) -> Answer | None:
    """To another date."""
    _, when = _without_date(f"x {match['when']}", turn.today)
    if when is None:
        return None
    kind = _at_hand(turn, kind_of(match), _wanted(match), match["kind"])
    told = f"{{}} is now due {when:%a %Y-%m-%d}." if kind == "task" else f"{{}} is now on {when:%a %Y-%m-%d}."
    return _carry_out(turn, "update", kind, _wanted(match), {"due": when}, told)


def priority(turn: Turn, match: re.Match[str]) -> Answer | None:
    level = match["priority"].lower()
    told = f"{{}} has {level} priority now."
    return _carry_out(turn, "update", "task", _wanted(match), {"priority": level}, told)


def archive(turn: Turn, match: re.Match[str]) -> Answer | None:
    return _carry_out(turn, "update", "project", _wanted(match), {"status": "archived"}, "Archived {}.")


def comment(turn: Turn, match: re.Match[str]) -> Answer | None:
    text = match["text"].strip()
    wanted = (match.groupdict().get("what") or "").strip(_TO_STRIP)
    return _carry_out(
        turn, "create", "task", wanted, {"content": text}, "Added the comment to {}.", wish="create comment"
    )


def delete(turn: Turn, match: re.Match[str]) -> Answer | None:
    kind = _at_hand(turn, kind_of(match), _wanted(match), match["kind"])
    return _carry_out(turn, "delete", kind, _wanted(match), {}, "Deleted {}.")


def confirmed(turn: Turn) -> Answer:
    """Do what the user said yes to, exactly that, once."""
    if not turn.done:
        return Answer(wishes=turn.confirmed)
    done = [(tool, result) for tool, result in turn.done if not results.failed(result)]
    if len(done) <= _TOLD_ONE_BY_ONE:
        return turn.told()
    tool = done[0][0]
    verb, kind = "Deleted" if tool.startswith("delete") else "Changed", results.kind_of(tool)
    failed = [pair for pair in turn.done if results.failed(pair[1])]
    return Answer(" ".join(filter(None, [f"{verb} {len(done)} {kind}s.", results.told(failed)])))


def _at_hand(turn: Turn, kind: str, wanted: str, named: str | None) -> str:
    """The kind of the row that "this" is, where no other was named."""
    row = turn.scope or turn.mentioned
    return row.kind if not named and row is not None and _THIS.fullmatch(wanted) else kind


def _carry_out(
    turn: Turn, verb: str, kind: str, wanted: str, given: Mapping[str, Any], told: str, *, wish: str = ""
) -> Answer | None:
    """Find the rows, change them all at once, and tell. `told` has a place for what they are called."""
    every = _ALL.fullmatch(wanted)
    if every is not None and every["kind"]:
        named = every["kind"].lower().rstrip("s")
        kind = _NAMES_OF.get(named, named)
    here = turn.scope if turn.scope is not None else turn.mentioned
    if here is not None and here.kind == kind and _THIS.fullmatch(wanted):
        rows, acted = [here], turn.done
    elif _THIS.fullmatch(wanted):
        return Answer(f"Which {kind} do you mean?")
    elif not turn.done:
        return turn.call(f"list {kind}s", _narrowed(turn, kind, wanted, every, verb))
    else:
        listed, acted = turn.done[0][1], turn.done[1:]
        if results.failed(listed):
            return turn.told()
        rows = results.rows(listed)[:_MOST_AT_ONCE] if every else results.matching(listed, wanted)
        if not rows or (len(rows) > 1 and not every):
            return Answer(_which(rows, kind, wanted, "changed"))
    if acted:
        return Answer(_outcome(acted, rows, kind, told, deleting=verb == "delete"))
    calls = [turn.tools.call(wish or f"{verb} {kind}", {"id": row.id, **given}) for row in rows]
    return Answer(wishes=tuple(call for call in calls if call is not None)) if all(calls) else None


def _narrowed(turn: Turn, kind: str, wanted: str, every: re.Match[str] | None, verb: str) -> dict[str, Any]:
    """What the list is asked for, so that it is short and has what is meant."""
    if every is None:
        words = results.key_words(wanted)
        return {"search": words} if words and turn.tools.takes(f"list {kind}s", "search") else {}
    said = every["state"] or ("open" if verb == "update" else "")
    found = look.state(turn, said.lower()) if said and kind == "task" else None
    return {"status": found} if found else {}


def _which(rows: Sequence[Row], kind: str, wanted: str, verb: str) -> str:
    if not rows:
        return f"I found no {kind} like “{wanted}”, so I {verb} nothing."
    named = ", ".join(f"“{row.title}”" for row in rows)
    return f"Which one do you mean: {named}? {results.tag(kind, (row.id for row in rows))}".strip()


def _outcome(
    acted: Sequence[tuple[str, str]], rows: Sequence[Row], kind: str, told: str, *, deleting: bool
) -> str:
    """What was done, then what was not and why, or what needs a yes."""
    said = [result for _, result in acted]
    done = [(row, result) for row, result in zip(rows, said, strict=False) if not results.failed(result)]
    parts = []
    if done:
        titles = [row.title or _written(result) for row, result in done]
        what = f"“{titles[0]}”" if len(done) == 1 else f"{len(done)} {kind}s"
        parts.append(told.format(what))
        if not deleting:
            parts.append(results.tag(kind, (row.id for row, _ in done)))
    if any(map(results.needs_yes, said)):
        parts.append(results.WAITS)
    if any(map(results.was_declined, said)):
        parts.append(
            "As you wish: nothing more was changed." if done else "As you wish: nothing was changed."
        )
    other = [
        results.why(result)
        for result in said
        if results.failed(result) and not results.needs_yes(result) and not results.was_declined(result)
    ]
    if other:
        parts.append(f"That did not work: {'; '.join(dict.fromkeys(other))}")
    return " ".join(filter(None, parts))


def _written(result: str) -> str:
    """The title in what a write answered."""
    found = results.rows(result)
    return found[0].title if found else "it"
