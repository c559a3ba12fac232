"""Tells many tasks grouped by when they are due, and the tasks of a week day by day. Each group is bounded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, timedelta

from adiuva.offline_llm import row_facts, tool_results
from adiuva.offline_llm.row_facts import Facts
from adiuva.offline_llm.turn_state import Answer, TurnState

# Up to this many rows, a list is told as the tool wrote it.
_FEW = 12
_MOST_IN_GROUP = 6
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_WEEK_DAYS = 7


def describe(turn: TurnState) -> Answer:
    """Tell the results; many tasks grouped."""
    return Answer("\n\n".join(_describe(turn, *pair) for pair in turn.completed))


def _describe(turn: TurnState, tool: str, result: str) -> str:
    found = row_facts.read_tasks([result]) if tool == "list_tasks" else []
    if len(found) <= _FEW or tool_results.is_failure(result):
        return tool_results.describe_results([(tool, result)])
    number, least = tool_results.count_rows(result)
    groups: dict[str, list[Facts]] = {
        name: [] for name in ("Overdue", "Today", "This week", "Later", "No date", "Done")
    }
    for each in found:
        groups[_group(each, turn.today)].append(each)
    lines, shown = [f"{least.capitalize()}{max(number, len(found)):,} tasks."], list[Facts]()
    for name, rows in groups.items():
        if rows:
            lines += [
                "",
                f"**{name}** ({len(rows)})",
                *_lines(rows, with_day=name not in {"Today", "No date"}),
            ]
            shown += rows[:_MOST_IN_GROUP]
    if left := number - len(found):
        lines += ["", f"{left:,} more are not shown: ask for a project, a week or a state."]
    return "\n".join([*lines, _tag(shown)])


def _group(task: Facts, today: date) -> str:
    if task.is_done:
        return "Done"
    if task.day is None:
        return "No date"
    if task.day <= today:
        return "Overdue" if task.day < today else "Today"
    return "This week" if task.day <= today + timedelta(days=6 - today.weekday()) else "Later"


def _lines(rows: Sequence[Facts], *, with_day: bool) -> list[str]:
    lines = [f"- {_line(row, with_day=with_day)}" for row in rows[:_MOST_IN_GROUP]]
    return lines + ([f"- and {len(rows) - _MOST_IN_GROUP} more"] if len(rows) > _MOST_IN_GROUP else [])


def _line(task: Facts, *, with_day: bool) -> str:
    day = f"{task.day:%a} {task.day}" if task.day and with_day else ""
    urgent = "high priority" if task.priority == "high" else ""
    facts = ", ".join(filter(None, [day, urgent, task.project]))
    return f"{task.row.title}{f' ({facts})' if facts else ''}"


def _tag(rows: Sequence[Facts]) -> str:
    return tool_results.entity_tag("task", (each.row.id for each in rows if each.row.id))


def plan_week(turn: TurnState, match: re.Match[str]) -> Answer | None:
    """Tell what is overdue, and the tasks and dates of the next seven days, a list for each day."""
    last = turn.today + timedelta(days=_WEEK_DAYS - 1)
    if not turn.completed:
        tasks = turn.tools.build_call("list tasks", {"status": "open", "to": last})
        entries = turn.tools.build_call("list timelines", {"date from": turn.today, "date to": last})
        calls = tuple(filter(None, [tasks, entries]))
        return Answer(tool_calls=calls) if tasks else None
    tasks_told = [result for tool, result in turn.completed if "task" in tool]
    dates_told = [result for tool, result in turn.completed if "timeline" in tool]
    if any(map(tool_results.is_failure, tasks_told)):
        return turn.describe_results()
    tasks_found = [each for each in row_facts.read_tasks(tasks_told) if not each.is_done]
    dates_found = row_facts.read_tasks(dates_told)
    late = [each for each in tasks_found if each.day and each.day < turn.today]
    lines = [f"Your week from {_day_name(turn.today)} to {_day_name(last)}:"]
    if late:
        lines += ["", f"**Overdue, to be done first** ({len(late)})", *_lines(late, with_day=True)]
    shown = late[:_MOST_IN_GROUP]
    for day in (turn.today + timedelta(days=number) for number in range(_WEEK_DAYS)):
        due = [each for each in tasks_found if each.day == day]
        due.sort(key=lambda each: ("high", "medium", "low").index(each.priority))
        kept = [f"- {each.row.title} (date that matters)" for each in dates_found if each.day == day]
        if due or kept or day.weekday() < 5:
            lines += ["", f"**{_day_name(day)}**", *kept[:_MOST_IN_GROUP], *_lines(due, with_day=False)]
            lines += [] if due or kept else ["- nothing is due"]
        shown += due[:_MOST_IN_GROUP]
    if left := sum(tool_results.count_rows(each)[0] for each in tasks_told) - len(tasks_found):
        lines += ["", f"{left:,} more tasks were not read: they are due later than those."]
    return Answer("\n".join([*lines, *filter(None, [_tag(shown)])]))


def _day_name(day: date) -> str:
    return f"{_DAYS[day.weekday()]} {day}"
