"""Answers chat messages: matches a request against patterns and carries it out with the offered tools."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adiuva.offline_llm import (
    CHAT_MODEL,
    agent_requests,
    charts,
    conversation_summary,
    memory_questions,
    read_requests,
    run_ends,
    task_groups,
    write_requests,
)
from adiuva.offline_llm.turn_state import Answer, TurnState

WHAT_IT_IS = (
    f"I am {CHAT_MODEL}, a set of rules for trying Adiuva without a model. I am no language model: I know a few "
    "phrases and nothing else."
)
WHAT_IT_CAN = (
    "You can ask me to list or count your tasks, projects, notes, timelines or clients, what is due today, to add "
    'a task ("add a task to call Ada tomorrow"), to mark one as done, rename, move or delete it, to search your '
    "notes, to plan your week, to draw tasks by priority as a chart, to run your sample agent, to tell what it found, "
    'to schedule it ("every weekday at 8") or stop it, or to remember something and tell it again. For anything more, '
    "configure a model: set ADIUVA_MODEL."
)
_NOTHING_TO_CONFIRM = "There is nothing that waits for your yes. Please say again what I should do."


def answer(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Answer:
    """Return the next step for the last user message: tools to call, or a text."""
    if not tools and (summary := conversation_summary.summarize_conversation(messages)):
        return Answer(summary)
    messages, told = run_ends.take(messages)
    turn = TurnState.from_messages(messages, tools)
    if told and not (turn.request and run_ends.has_request(messages)):
        return Answer(" ".join(told))
    found = _answer(turn)
    news = "" if found.tool_calls else run_ends.not_in(found.text, told)
    return Answer(f"{news}\n\n{found.text}") if news else found


def _answer(turn: TurnState) -> Answer:
    if turn.confirmed:
        return write_requests.run_confirmed_calls(turn)
    if (found := agent_requests.answer(turn)) is not None:
        return found
    for pattern, handler in _HANDLERS:
        match = pattern.search(turn.request)
        if match is not None and (found := handler(turn, match)) is not None:
            return found
    if turn.completed:
        return turn.describe_results()
    for pattern, text in _SMALL_TALK:
        if pattern.search(turn.request):
            return Answer(text)
    return Answer(f"{WHAT_IT_IS} {WHAT_IT_CAN}")


# ── Request patterns ────────────────────────────────────────────────────────────────────────────────────────

Handler = Callable[[TurnState, re.Match[str]], Answer | None]

_OPENING = r"^(?:hi |hello |hey )?(?:please |can you |could you |would you |now |and |then )*"
_KIND = (
    r"(?P<kind>tasks?|to-?dos?|reminders?|notes?|projects?|clients?|timeline entry|timelines?|milestones?"
    r"|deadlines?)"
)
_NAMED_KIND = rf"(?:(?:the|my|this|that)(?: |$))?(?:{_KIND}(?: |$))?"
_WHAT = r"(?:(?P<what>.*?)\s)??"  # empty when the request means the current row
_LEVEL = r"(?P<priority>high|medium|low)"
_STATUS = (
    r"(?P<status>not done|done|complete|completed|finished|in progress|started|to-?do|to do|open|undone"
    r"|unfinished)"
)
_QUESTION_WORD = (
    r"(?:how|what|what'?s|when|where|who|which|why|do|did|am|is|are|was|have|should|(?<=tell me )my"
    r"|wie|wann|wo|wer|wen|welche\w?|warum|bin|habe|come|cosa|che|chi|dove|quando|quanto|quale?|perché)"
)
_FIRST_PERSON = (
    r"(?=.*\b(?:i|me|my|mine|ich|mich|mir|mein(?:e\w?)?|mi|mio|mia|miei|mie)\b"
    r"|(?:come|cosa|dove|quando|quanto|chi) (?:\w{3,}o|sono)\b)"  # Italian drops the pronoun "io"
)


def _compile(*pairs: tuple[str, Handler]) -> list[tuple[re.Pattern[str], Handler]]:
    return [(re.compile(pattern, re.IGNORECASE | re.DOTALL), handler) for pattern, handler in pairs]


# The first pattern with a handler that returns an answer decides, so specific patterns stand before general ones.
_HANDLERS = _compile(
    (
        rf"{_OPENING}(?:(?:add|write|leave|make) (?:a |the )?)?comment (?:on|to) "
        rf"{_NAMED_KIND}(?P<what>[^:]+): ?(?P<text>.+)",
        write_requests.add_comment,
    ),
    (
        rf"{_OPENING}(?:(?:add|write|leave|make) (?:a |the )?)?comment(?: here)?(?:: ?| that )(?P<text>.+)",
        write_requests.add_comment,
    ),
    (
        rf"{_OPENING}(?:add|create|make|write|new|take)\s(?:me\s)?"
        rf"(?:(?:an?|the|new|urgent|important|(?:high|medium|low)[ -]priority)\s)*{_KIND}\b"
        r"(?:\s(?:to|for|about|called|named|that says)\b|\s?[:–-])?\s*(?P<what>.*)",
        write_requests.create,
    ),
    (rf"{_OPENING}remind me (?:to|that|about)\s(?P<what>.+)", write_requests.create),
    (rf"{_OPENING}(?:delete|remove)\s{_NAMED_KIND}(?P<what>.*)", write_requests.delete),
    (rf"{_OPENING}archive\s{_NAMED_KIND}(?P<what>.*)", write_requests.archive),
    (rf"{_OPENING}rename\s{_NAMED_KIND}{_WHAT}(?:to|into|as)\s(?P<title>.+)", write_requests.rename),
    (
        rf"{_OPENING}(?:(?:set|change|move) the (?:due date|deadline|date) of"
        rf"|move|postpone|reschedule|shift|push|delay)\s{_NAMED_KIND}"
        r"(?:(?P<what>.*)\s)??(?:to|until|till|by|on)\s(?P<when>.+)",
        write_requests.reschedule,
    ),
    (
        rf"{_OPENING}(?:(?:set|change) the priority of|give|make)\s{_NAMED_KIND}{_WHAT}(?:to\s|an?\s)?{_LEVEL}"
        r"(?: priority)?[.!]?$",
        write_requests.set_priority,
    ),
    (
        rf"{_OPENING}(?:mark|set|tick off|tick)\s{_NAMED_KIND}{_WHAT}(?:off |as |to )*{_STATUS}[.!]?$",
        write_requests.set_status,
    ),
    (
        rf"{_OPENING}(?:complete|finish|close|tick off)\s{_NAMED_KIND}(?P<what>.*)",
        write_requests.set_status,
    ),
    (
        rf"^i(?:'ve| have)? (?:finished|completed|done)\s{_NAMED_KIND}(?P<what>.*)",
        write_requests.set_status,
    ),
    (
        rf"^(?!what|which|who|how|when|where|list|show|tell|find|count){_NAMED_KIND}{_WHAT}is "
        r"(?P<status>done|complete|completed|finished)[.!]?$",
        write_requests.set_status,
    ),
    (rf"{_OPENING}(?:remember|keep in mind|don't forget)\s(?:that )?(?P<what>.+)", write_requests.remember),
    (
        r"^(?:what|which)(?: \w+)? (?:is|am i looking at)(?: this| here| it| that)?\??$|^what'?s this\??$"
        r"|^(?:summari[sz]e|describe|explain|tell me about) (?:this|it)(?: \w+)?[.?]?$",
        read_requests.describe_current_row,
    ),
    (r"\bcomments?\b", read_requests.list_comments),
    (
        r"\b(?:charts?|graphs?|plot|diagramm?|graphique|grafico|gráfico)\b|\bdraw\b.*\btasks\b",
        charts.draw,
    ),
    (
        r"\bplan(?:ne|ifie|ifica)? (?:out )?(?:my|the|meine|ma|la mia|mi) (?:\w+ )?"
        r"(?:week|woche|semaine|settimana|semana)\b"
        r"|\b(?:my|the) week(?:'s plan| ahead| plan)\b|\bwhat does my week look like\b"
        r"|\bpianifica la mia settimana\b",
        task_groups.plan_week,
    ),
    (memory_questions.ASKS_FOR_EVERYTHING, memory_questions.tell_everything),
    (
        r"\bdue (?:today|tomorrow|this|next|on|by|until|in|within|before|after)\b|\boverdue\b|\btoday'?s tasks\b"
        r"|\bwhat (?:do|should|must) i (?:have to )?do (?:today|tomorrow|this week)\b|\btoday\b.*\btasks?\b"
        r"|\btasks?\b.*\b(?:today|tomorrow|(?:this|next) (?:week|month|year))\b|\bwhat(?:'s| is)? due\b",
        read_requests.list_due_tasks,
    ),
    (r"\bwhat do (?:my|the) notes say (?:about|on)\s(?P<what>.+)", read_requests.search_notes),
    (
        r"\b(?:search|look through|look in|find|look)\s(?:in )?(?:my |the )?notes?\s(?:for|about|on)\s"
        r"(?P<what>.+)",
        read_requests.search_notes,
    ),
    (
        r"\b(?:read|open|show)\s(?:me )?(?:the |my )?note\s(?:about |on |called |named )?(?P<what>.+)",
        read_requests.read_note,
    ),
    (
        r"\b(?:list|show|what|which|how many|count|number of|any|do i have|give me|tell me|see|my|all)\b",
        read_requests.list_rows,
    ),
    # Last, because the device's rows are the better source if they can answer.
    (
        rf"{_OPENING}(?:tell me )?{_FIRST_PERSON}{_QUESTION_WORD}\b",
        memory_questions.answer_from_memory,
    ),
)
_SMALL_TALK = [
    (
        re.compile(
            r"^\s*(?:hi|hello|hey|good (?:morning|afternoon|evening)|hallo|ciao|bonjour)\b", re.IGNORECASE
        ),
        f"Hello! {WHAT_IT_IS} {WHAT_IT_CAN}",
    ),
    (re.compile(r"^\s*(?:thanks|thank you|danke|merci|grazie)\b", re.IGNORECASE), "You are welcome."),
    (
        re.compile(
            r"^\s*(?:yes|ja|oui|sì|ok|okay|go ahead|do it)\b[\s.!,]*(?:please)?[\s.!]*$", re.IGNORECASE
        ),
        _NOTHING_TO_CONFIRM,
    ),
    (
        re.compile(r"^\s*(?:no|nein|non|cancel|never mind)\b[\s.!,]*(?:thanks)?[\s.!]*$", re.IGNORECASE),
        "As you wish.",
    ),
]
