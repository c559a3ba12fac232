"""Draws counts of tasks as a chart: by state, priority, project or person."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable

from adiuva.offline_llm import row_facts, tool_results
from adiuva.offline_llm.row_facts import Facts
from adiuva.offline_llm.turn_state import Answer, TurnState

_STATES = {"todo": "to do", "in_progress": "in progress", "done": "done"}
_BY: list[tuple[str, str, Callable[[Facts], str]]] = [
    ("priority", r"priorit", lambda task: task.priority),
    ("project", r"proje[ck]t|progett|proyect", lambda task: task.project or "no project"),
    ("person", r"person|assignee|who\b|people|wem\b", lambda task: task.people or "nobody named"),
    ("month", r"month|monat|mois|mese|mes\b", lambda task: f"{task.day:%Y-%m}" if task.day else "no date"),
    ("state", r"stat(?:e|us)|zustand|état|stato|estado|progress", lambda task: task.status or "to do"),
]
_SHAPES = {"pie": "pie", "line": "line", "area": "area", "radar": "radar", "radial": "radial"}
_COLOR = "#2563eb"
_MOST_BARS = 12
_ORDER = ("high", "medium", "low", "to do", "todo", "in progress", "done")


def draw(turn: TurnState, match: re.Match[str]) -> Answer | None:
    """Count tasks with the tools, then answer with a sentence and the chart."""
    said = turn.request.casefold()
    by, key = next(((name, key) for name, words, key in _BY if re.search(words, said)), ("state", None))
    if not turn.completed:
        return _ask(turn, by)
    failed = [pair for pair in turn.completed if tool_results.is_failure(pair[1])]
    if failed:
        return Answer(tool_results.describe_results(failed[:1]))
    results = [result for _, result in turn.completed]
    if key is None or by == "state":
        counts = dict(
            zip(_STATES.values(), (tool_results.count_rows(each)[0] for each in results), strict=False)
        )
        total = counted = sum(counts.values())
    else:
        tasks = row_facts.read_tasks(results)
        counts = dict(Counter(map(key, tasks)))
        total, counted = max(len(tasks), *(tool_results.count_rows(each)[0] for each in results)), len(tasks)
    counts = {name: number for name, number in counts.items() if number}
    if not counts:
        return Answer("There are no tasks to draw.")
    bars = _bounded(counts, by)
    shape = next((shape for word, shape in _SHAPES.items() if word in said), "bar")
    title = f"Tasks by {by}"
    data = [{"name": name, "tasks": number} for name, number in bars.items()]
    chart = {
        "chartType": shape,
        "title": title,
        "data": data,
        "config": {"tasks": {"label": "Tasks", "color": _COLOR}},
    }
    told = ", ".join(f"{name} {number:,}" for name, number in bars.items())
    part = f" Counted are {counted:,} of {total:,} tasks, as many as I could read." if counted < total else ""
    return Answer(f"{title}: {told}.{part}\n<chart>{json.dumps(chart, ensure_ascii=False)}</chart>")


def _ask(turn: TurnState, by: str) -> Answer | None:
    """Return calls whose results hold all that is counted: the number of each state, or the list from both its ends."""
    asked = (
        [{"status": state} for state in _STATES]
        if by == "state"
        else [{"order": "created", "descending": up} for up in (False, True)]
    )
    calls = tuple(call for each in asked if (call := turn.tools.build_call("list tasks", each)) is not None)
    return Answer(tool_calls=calls) if calls else None


def _bounded(counts: dict[str, int], by: str) -> dict[str, int]:
    def place(name: str) -> tuple[int, int | str]:
        if name in _ORDER:
            return 0, _ORDER.index(name)
        return (1, name) if by == "month" else (1, -counts[name])

    names = sorted(counts, key=place)
    bars = {name: counts[name] for name in names[:_MOST_BARS]}
    if len(names) > _MOST_BARS:
        bars["others"] = sum(counts[name] for name in names[_MOST_BARS:])
    return bars
