"""Chat by rules: a small set of requests, each matched by its words and carried out with the tools on offer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adiuva.offline_model import CHAT_MODEL, change, condense, look, recall
from adiuva.offline_model.turn import Answer, Turn

WHAT_IT_IS = (
    f"I am {CHAT_MODEL}, a set of rules for trying Adiuva without a model. I am no language model: I know a few "
    "phrases and nothing else."
)
WHAT_IT_CAN = (
    "You can ask me to list or count your tasks, projects, notes, timelines or clients, what is due today, to add "
    'a task ("add a task to call Ada tomorrow"), to mark one as done, rename, move or delete it, to search your '
    "notes, or to remember something and tell it again. For anything more, configure a model: set ADIUVA_MODEL."
)
_NOTHING_TO_CONFIRM = "There is nothing that waits for your yes. Please say again what I should do."


def answer(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Answer:
    """The next step for the last user message: tools to call, or a text."""
    if not tools and (summary := condense.summary(messages)):
        return Answer(summary)
    turn = Turn.read(messages, tools)
    if turn.confirmed:
        return change.confirmed(turn)
    for pattern, intent in _INTENTS:
        match = pattern.search(turn.request)
        if match is not None and (found := intent(turn, match)) is not None:
            return found
    if turn.done:
        return turn.told()
    for pattern, text in _SMALL_TALK:
        if pattern.search(turn.request):
            return Answer(text)
    return Answer(f"{WHAT_IT_IS} {WHAT_IT_CAN}")


# ── The requests ────────────────────────────────────────────────────────────────────────────────────────

Intent = Callable[[Turn, re.Match[str]], Answer | None]

_ASK = r"^(?:hi |hello |hey )?(?:please |can you |could you |would you |now |and |then )*"
_KIND = (
    r"(?P<kind>tasks?|to-?dos?|reminders?|notes?|projects?|clients?|timeline entry|timelines?|milestones?"
    r"|deadlines?)"
)
_SOME = rf"(?:(?:the|my|this|that)(?: |$))?(?:{_KIND}(?: |$))?"
_WHAT = r"(?:(?P<what>.*?)\s)??"  # nothing, where it is the row at hand
_LEVEL = r"(?P<priority>high|medium|low)"
_STATUS = (
    r"(?P<status>not done|done|complete|completed|finished|in progress|started|to-?do|to do|open|undone"
    r"|unfinished)"
)
_ASKS = (
    r"(?:how|what|what'?s|when|where|who|which|why|do|did|am|is|are|was|have|should|(?<=tell me )my"
    r"|wie|wann|wo|wer|wen|welche\w?|warum|bin|habe|come|cosa|che|chi|dove|quando|quanto|quale?|perché)"
)
_OF_ME = (
    r"(?=.*\b(?:i|me|my|mine|ich|mich|mir|mein(?:e\w?)?|mi|mio|mia|miei|mie)\b"
    r"|(?:come|cosa|dove|quando|quanto|chi) (?:\w{3,}o|sono)\b)"  # Italian leaves out the "I"
)


def _compiled(*pairs: tuple[str, Intent]) -> list[tuple[re.Pattern[str], Intent]]:
    return [(re.compile(pattern, re.IGNORECASE | re.DOTALL), intent) for pattern, intent in pairs]


_INTENTS = _compiled(
    (
        rf"{_ASK}(?:(?:add|write|leave|make) (?:a |the )?)?comment (?:on|to) {_SOME}(?P<what>[^:]+): ?(?P<text>.+)",
        change.comment,
    ),
    (
        rf"{_ASK}(?:(?:add|write|leave|make) (?:a |the )?)?comment(?: here)?(?:: ?| that )(?P<text>.+)",
        change.comment,
    ),
    (
        rf"{_ASK}(?:add|create|make|write|new|take)\s(?:me\s)?"
        rf"(?:(?:an?|the|new|urgent|important|(?:high|medium|low)[ -]priority)\s)*{_KIND}\b"
        r"(?:\s(?:to|for|about|called|named|that says)\b|\s?[:–-])?\s*(?P<what>.*)",
        change.create,
    ),
    (rf"{_ASK}remind me (?:to|that|about)\s(?P<what>.+)", change.create),
    (rf"{_ASK}(?:delete|remove)\s{_SOME}(?P<what>.*)", change.delete),
    (rf"{_ASK}archive\s{_SOME}(?P<what>.*)", change.archive),
    (rf"{_ASK}rename\s{_SOME}{_WHAT}(?:to|into|as)\s(?P<title>.+)", change.rename),
    (
        rf"{_ASK}(?:(?:set|change|move) the (?:due date|deadline|date) of"
        rf"|move|postpone|reschedule|shift|push|delay)\s{_SOME}"
        r"(?:(?P<what>.*)\s)??(?:to|until|till|by|on)\s(?P<when>.+)",
        change.move,
    ),
    (
        rf"{_ASK}(?:(?:set|change) the priority of|give|make)\s{_SOME}{_WHAT}(?:to\s|an?\s)?{_LEVEL}"
        r"(?: priority)?[.!]?$",
        change.priority,
    ),
    (
        rf"{_ASK}(?:mark|set|tick off|tick)\s{_SOME}{_WHAT}(?:off |as |to )*{_STATUS}[.!]?$",
        change.status,
    ),
    (rf"{_ASK}(?:complete|finish|close|tick off)\s{_SOME}(?P<what>.*)", change.status),
    (rf"^i(?:'ve| have)? (?:finished|completed|done)\s{_SOME}(?P<what>.*)", change.status),
    (
        rf"^(?!what|which|who|how|when|where|list|show|tell|find|count){_SOME}{_WHAT}is "
        r"(?P<status>done|complete|completed|finished)[.!]?$",
        change.status,
    ),
    (rf"{_ASK}(?:remember|keep in mind|don't forget)\s(?:that )?(?P<what>.+)", change.remember),
    (
        r"^(?:what|which)(?: \w+)? (?:is|am i looking at)(?: this| here| it| that)?\??$|^what'?s this\??$"
        r"|^(?:summari[sz]e|describe|explain|tell me about) (?:this|it)(?: \w+)?[.?]?$",
        look.here,
    ),
    (r"\bcomments?\b", look.comments),
    (
        r"\bdue (?:today|tomorrow|this week|next week|on|by|until)\b|\boverdue\b|\btoday'?s tasks\b"
        r"|\bwhat (?:do|should|must) i (?:have to )?do (?:today|tomorrow|this week)\b|\btoday\b.*\btasks?\b"
        r"|\btasks?\b.*\b(?:today|tomorrow|(?:this|next) week)\b|\bwhat(?:'s| is)? due\b",
        look.due,
    ),
    (r"\bwhat do (?:my|the) notes say (?:about|on)\s(?P<what>.+)", look.notes),
    (
        r"\b(?:search|look through|look in|find|look)\s(?:in )?(?:my |the )?notes?\s(?:for|about|on)\s"
        r"(?P<what>.+)",
        look.notes,
    ),
    (
        r"\b(?:read|open|show)\s(?:me )?(?:the |my )?note\s(?:about |on |called |named )?(?P<what>.+)",
        look.note,
    ),
    (
        r"\b(?:list|show|what|which|how many|count|number of|any|do i have|give me|tell me|see|my|all)\b",
        look.rows,
    ),
    (rf"{_ASK}(?:tell me )?{_OF_ME}{_ASKS}\b", recall.recall),  # what no row of the device answers
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
