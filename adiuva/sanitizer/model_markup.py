"""First stage: markup. Entity tags and charts pass whole; tool calls and control tokens are removed.

A construct is judged when its end is seen, MAX_HELD_CHARS characters after its start, or at the end of the answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Final

from adiuva.sanitizer import charts, tool_calls
from adiuva.sanitizer.patterns import LeakPatterns

MAX_HELD_CHARS: Final = 64 * 1024
"""At most this many characters are held back."""

_ENTITY = r"(?:task|project|note|timeline)"
_CALLS = r"(?:minimax:)?tool_calls?|function_calls?|tool_responses?|tool_results?|tools"
_CALL = rf"<(?P<call>{_CALLS})(?:\s[^<>]{{0,200}})?>|<(?P<named>function|invoke)[\s=][^<>]{{0,200}}>"
_CONTROL = r"<[|｜][^|｜<>\n]{0,64}[|｜]>"
# gpt-oss writes its thoughts and calls on channels of their own, and its answer on the one called final.
_CHANNEL = r"<\|channel\|>\s{0,4}(?:final\s{0,4}<\|message\|>|(?P<channel>analysis|commentary)\b)|<\|start\|>assistant"
_CHANNEL_BEGUN = (
    r"<\|channel\|>\s{0,4}(?:[a-z]{0,10}|final\s{0,4}(?:<(?:\|[a-z]{0,7}\|?)?)?)|<\|start\|>[a-z]{0,9}"
)
_ANGLE = re.compile(
    rf"<(?P<entity>{_ENTITY})>\s{{0,16}}\[|(?P<chart><chart>\s{{0,16}})\{{|(?P<thought><think(?:ing)?>)|{_CALL}"
    r"|(?P<begin><[|｜]tool[_▁ ]calls?(?:[_▁ ]section)?[_▁ ]begin[|｜]>)"
    rf"|{_CHANNEL}|{_CONTROL}|</?(?:{_CALLS}|invoke|parameter)>|</function>|<parameter[\s=][^<>]{{0,200}}>"
)
_ANGLE_BEGUN = re.compile(
    rf"<(?:/?[a-z_:]{{0,20}}|/(?:{_CALLS}|function|invoke|parameter)|(?:{_ENTITY}|chart)>\s{{0,16}}"
    rf"|(?:{_CALLS})\s[^<>]{{0,200}}|(?:function|invoke|parameter)[\s=][^<>]{{0,200}}|[|｜][^|｜<>\n]{{0,64}}[|｜]?)\Z"
)
_CHANNEL_OPEN = re.compile(rf"(?:{_CHANNEL_BEGUN})\Z")
# The keys with which models start a tool call or a tool's schema.
_KEY = r'"(?:type|name|function|tool|tool_name|tool_calls|tool_uses|arguments|parameters|id|index|recipient_name)"'
_OBJECT = rf"\{{\s{{0,16}}{_KEY}\s{{0,16}}:"
_OBJECT_BEGUN = r"\{\s{0,16}(?:\"(?:[a-z_]{0,16}(?:\"\s{0,16})?)?)?"
_BRACE = re.compile(_OBJECT)
_BRACE_BEGUN = re.compile(rf"{_OBJECT_BEGUN}\Z")
_SQUARE = re.compile(
    rf"(?P<list>\[\s{{0,16}}{_OBJECT})"
    r"|\[TOOL_CALLS\](?P<value>\s{0,16}(?:[\w.-]{1,64}(?:\[CALL_ID\]\w{1,32})?\[ARGS\]\s{0,16})?(?=[\[{]))?"
    r"|\[/?(?:TOOL_REQUEST|TOOL_RESULTS?|AVAILABLE_TOOLS|INST|ARGS)\]"
)
_SQUARE_BEGUN = re.compile(
    rf"\[(?:/?[A-Z_]{{0,16}}|\s{{0,16}}(?:{_OBJECT_BEGUN})?|TOOL_CALLS\]\s{{0,16}}"
    r"(?:[\w.-]{1,64}(?:\[[A-Z_]{0,8}(?:\]\w{0,32}(?:\[[A-Z]{0,4}\]?)?\s{0,16})?)?)?)\Z"
)
# A call in a block of code is removed with its fences.
_FENCE = r"```[ \t]{0,4}(?:json|tool_?calls?|tool_code|xml)?[ \t]{0,4}\n?\s{0,16}"
_FENCED = re.compile(
    rf"```[ \t]{{0,4}}(?P<own>tool_?calls?|tool_code)\b|{_FENCE}(?P<value>(?:\[\s{{0,16}})?{_OBJECT})"
)
_FENCED_BEGUN = re.compile(
    rf"(?:`{{1,3}}|```[ \t]{{0,4}}[a-z_]{{0,10}}[ \t]{{0,4}}|{_FENCE}(?:\[\s{{0,16}})?(?:{_OBJECT_BEGUN})?)\Z"
)
_FENCE_END = re.compile(r"\s{0,16}```")
_FENCE_END_BEGUN = re.compile(r"\s{0,16}`{0,2}\Z")
_TRIGGER = re.compile(r"[<\[{`]")
_ENTITY_BODY_END = re.compile(r"[\]<]")
_ENTITY_CLOSE = re.compile(rf"\s{{0,16}}</{_ENTITY}>")
_ENTITY_CLOSE_BEGUN = re.compile(r"\s{0,16}(?:</?[a-z]{0,8})?\Z")
_CHART_END = "</chart>"
_CHART_CLOSE = re.compile(r"\s{0,16}</chart>")
_CHART_CLOSE_BEGUN = re.compile(r"\s{0,16}(?:</?[a-z]{0,5})?\Z")
_TAGS = ("task", "project", "note", "timeline", "chart")
_UNFINISHED = re.compile(
    rf"<(?:{'|'.join(sorted({tag[:n] for tag in _TAGS for n in range(2, len(tag) + 1)}))}|(?:{'|'.join(_TAGS)})>\s*)\Z"
)
_BLANK_LINE = re.compile(r"\n[ \t]{0,8}\n")
_JSON_PART = re.compile(r'"(?:[^"\\]++|\\.)*+"|["{}\[\]]', re.DOTALL)

_THOUGHT_END = re.compile(r"</think(?:ing)?>")
_CHANNEL_END = re.compile(r"<\|(?:call|end|return)\|>|<\|channel\|>\s{0,4}final\s{0,4}<\|message\|>")
_CALLS_END = re.compile(r"<[|｜]tool[_▁ ]calls?(?:[_▁ ]section)?[_▁ ]end[|｜]>")
_QUOTES = " \t\r\n`\"'“”‘’"
# Longer than any closing mark, so that a split one is still found.
_SKIPPED_TAIL = 32

_WAIT: Final = -1


# More than 15 methods: one small one for each state of the scanner.
class MarkupStage:
    def __init__(
        self,
        patterns: LeakPatterns,
        *,
        prose: Callable[[str], None],
        whole: Callable[[str], None],
        allowed: Callable[[str], bool],
        id_of: Callable[[str], str | None],
        clean: Callable[[str], str],
        removed: Counter[str],
    ) -> None:
        self._tools, self._prose, self._whole = patterns.tool_names, prose, whole
        self._allowed, self._clean, self._removed, self._id_of = allowed, clean, removed, id_of
        self.held = ""
        # How far the JSON value at the start of the held text was scanned, and the nesting depth there.
        self._scanned: tuple[int, int] | None = None
        # The end of a construct that is dropped because it is too long to be held.
        self.skip_until: re.Pattern[str] | None = None
        self.has_cut = False  # whether something was removed at this position
        self.last = ""  # the last character of the prose
        self.has_text = False  # whether the answer has had more than blanks

    def feed(self, text: str) -> None:
        if self.held or self.skip_until:
            self.held += text
        elif text and not _TRIGGER.search(text):
            self._say(text)
            return
        else:
            self.held = text
        self._process(final=False)

    def finish(self) -> None:
        self._process(final=True)

    def _process(self, final: bool) -> None:
        held, at = self.held, 0
        while at < len(held):
            if self.skip_until:
                at = self._skipped(self.skip_until, at)
                if self.skip_until:
                    break
            trigger = _TRIGGER.search(held, at)
            start = trigger.start() if trigger else len(held)
            if start > at:
                self._say(held[at:start])
                at = start
            if trigger:
                following = self._construct(at, final)
                if following == _WAIT:
                    break
                at, self._scanned = following, None
        self.held = held[at:]
        if self._scanned:
            self._scanned = self._scanned[0] - at, self._scanned[1]

    def _construct(self, at: int, final: bool) -> int:
        """Judge a construct that may start at `at`; return where to continue, or _WAIT for more text."""
        match self.held[at]:
            case "<":
                return self._angle(at, final)
            case "{":
                if _BRACE.match(self.held, at):
                    return self._value(at, final)
                begun = _BRACE_BEGUN
            case "`":
                begun = _FENCED_BEGUN
                if found := _FENCED.match(self.held, at):
                    return self._fenced(at, found, final)
            case _:
                begun = _SQUARE_BEGUN
                if (found := _SQUARE.match(self.held, at)) and (final or not begun.match(self.held, at)):
                    return self._square(at, found, final)
        return _WAIT if not final and begun.match(self.held, at) else self._literal(at)

    def _angle(self, at: int, final: bool) -> int:
        held = self.held
        found = _ANGLE.match(held, at)
        if found is None:
            if not final:
                return _WAIT if _ANGLE_BEGUN.match(held, at) else self._literal(at)
            return self._dropped("tag", len(held)) if _UNFINISHED.match(held, at) else self._literal(at)
        if not final and _CHANNEL_OPEN.match(held, at):
            return _WAIT
        match found.lastgroup:
            case "channel":
                self.skip_until = _CHANNEL_END
                return self._dropped("thought", found.end())
            case "entity":
                return self._entity(at, found, final)
            case "chart":
                return self._chart(at, found.end("chart"), final)
            case "thought":
                if self.has_text:  # models think before they answer; later the tag is part of the text
                    return self._literal(at)
                self.skip_until = _THOUGHT_END
                return self._dropped("thought", found.end())
            case "call":
                return self._call(at, found.end(), re.compile(f"</{found['call']}>"), final)
            case "named":
                return self._call(at, found.end(), re.compile(f"</{found['named']}>"), final)
            case "begin":
                return self._call(at, found.end(), _CALLS_END, final)
            case _:
                return self._dropped("markup", found.end())

    def _entity(self, at: int, opening: re.Match[str], final: bool) -> int:
        held, start = self.held, opening.end()
        end = _ENTITY_BODY_END.search(held, start, at + MAX_HELD_CHARS)
        if end is None:
            if len(held) - at >= MAX_HELD_CHARS:
                return self._dropped("tag", start)  # not a list of ids: the rest is prose
            return self._dropped("tag", _end_of_line(held, start)) if final else _WAIT
        closed = end[0] == "]"
        after = end.end() if closed else end.start()
        closing = _ENTITY_CLOSE.match(held, after)
        if closing is None and _ENTITY_CLOSE_BEGUN.match(held, after):
            return self._dropped("tag", len(held)) if final else _WAIT
        if closing is None and not closed:
            return self._dropped("tag", start)
        self._show_entity(opening["entity"], held[start : end.start()])
        return closing.end() if closing else after

    def _show_entity(self, kind: str, listed: str) -> None:
        rows: dict[str, None] = {}
        for item in listed.split(","):
            row = self._row(item)
            for word in [row] if self._allowed(row) else [self._row(part) for part in row.split()]:
                if self._allowed(word):
                    rows[word] = None
                else:
                    self._removed["tag_id"] += 1
        if rows:
            self._show(f"<{kind}>[{','.join(rows)}]</{kind}>")
        else:
            self._dropped("tag", 0)

    def _row(self, item: str) -> str:
        """Return the row id that an item of a tag means."""
        word = item.strip(_QUOTES + "[]")
        return self._id_of(word) or word

    def _chart(self, at: int, start: int, final: bool) -> int:
        held = self.held
        close = held.find(_CHART_END, start, at + MAX_HELD_CHARS)
        end = self._end_of_value(start, close if close >= 0 else at + MAX_HELD_CHARS)
        if end == _WAIT:
            if close >= 0:
                return self._dropped("chart", close + len(_CHART_END))
            return self._unended("chart", at, start, _CHART_CLOSE, final)
        closing = _CHART_CLOSE.match(held, end)
        if closing is None and _CHART_CLOSE_BEGUN.match(held, end):
            return self._dropped("chart", len(held)) if final else _WAIT
        chart = charts.validated_json(held[start:end], self._clean)
        if chart is None:
            return self._dropped("chart", closing.end() if closing else end)
        self._show(f"<chart>{chart}</chart>")
        return closing.end() if closing else end

    def _call(self, at: int, start: int, close: re.Pattern[str], final: bool) -> int:
        closing = close.search(self.held, start, at + MAX_HELD_CHARS)
        if closing:
            return self._dropped("markup", closing.end())
        return self._unended("markup", at, start, close, final)

    def _square(self, at: int, found: re.Match[str], final: bool) -> int:
        if found["list"]:
            return self._value(at, final)
        if found["value"] is None:
            return self._dropped("markup", found.end())
        end = self._end_of_value(found.end(), at + MAX_HELD_CHARS)
        if end == _WAIT:
            return self._unended("markup", at, found.end(), _BLANK_LINE, final)
        return self._dropped("markup", end)

    def _value(self, at: int, final: bool) -> int:
        """Judge JSON that starts like a tool call or schema. A blank line ends it too, as its last brace may be
        missing."""
        held, stop = self.held, at + MAX_HELD_CHARS
        blank = _BLANK_LINE.search(held, at, stop)
        end = self._end_of_value(at, blank.start() if blank else stop)
        if end == _WAIT:
            if not blank and len(held) < stop and not final:
                return _WAIT
            end = blank.start() if blank else min(stop, len(held))
        if tool_calls.contains_tool_call(held[at:end], self._tools):
            return self._dropped("markup", end)
        self._say(held[at:end])
        return end

    def _fenced(self, at: int, found: re.Match[str], final: bool) -> int:
        """Judge a block of code that may hold a tool call and nothing else."""
        held, stop = self.held, at + MAX_HELD_CHARS
        if found["own"]:
            return self._call(at, found.end(), _FENCE_END, final)
        end = self._end_of_value(found.start("value"), stop)
        if end == _WAIT:
            return _WAIT if not final and len(held) < stop else self._fence(at)
        closing = _FENCE_END.match(held, end)
        if closing is None and not final and _FENCE_END_BEGUN.match(held, end):
            return _WAIT
        if closing is None or not tool_calls.contains_tool_call(
            held[found.start("value") : end], self._tools
        ):
            return self._fence(at)
        return self._dropped("markup", closing.end())

    def _fence(self, at: int) -> int:
        """Judge the marks alone: the text that follows is judged by itself."""
        self._say("```")
        return at + 3

    def _end_of_value(self, start: int, stop: int) -> int:
        """Return the end of a JSON value; _WAIT if it does not end before `stop`. It scans each part only once."""
        place, depth = self._scanned or (start, 0)
        for part in _JSON_PART.finditer(self.held, place, stop):
            match part[0]:
                case '"':
                    place = part.start()  # a string that has not ended yet
                    break
                case "{" | "[":
                    depth += 1
                case "}" | "]":
                    depth -= 1
                    if depth <= 0:
                        return part.end()
            place = part.end()
        self._scanned = place, depth
        return _WAIT

    def _unended(self, kind: str, at: int, start: int, close: re.Pattern[str], final: bool) -> int:
        """Drop a construct without an end: it is too long, cut off, or has not arrived yet."""
        held = self.held
        if len(held) - at >= MAX_HELD_CHARS:
            self.skip_until = (
                close if close is _BLANK_LINE else re.compile(f"{close.pattern}|{_BLANK_LINE.pattern}")
            )
            return self._dropped(kind, at + MAX_HELD_CHARS)
        if not final:
            return _WAIT
        blank = _BLANK_LINE.search(held, start)
        return self._dropped(kind, blank.start() if blank else len(held))

    def _skipped(self, end: re.Pattern[str], at: int) -> int:
        found = end.search(self.held, at)
        if found is None:
            return max(at, len(self.held) - _SKIPPED_TAIL)
        self.skip_until = None
        return found.start() if found[0].isspace() else found.end()

    def _literal(self, at: int) -> int:
        self._say(self.held[at])
        return at + 1

    def _dropped(self, kind: str, following: int) -> int:
        self._removed[kind] += 1
        self.has_cut = True
        return following

    def _say(self, text: str) -> None:
        if self.has_cut:
            # The text on both sides must not merge, perhaps into a tag.
            if text[0].isalnum() and self.last and not self.last.isspace():
                self._prose(" ")
            self.has_cut = False
        self.last = text[-1]
        self.has_text = self.has_text or not text.isspace()
        self._prose(text)

    def _show(self, text: str) -> None:
        self.has_cut, self.last, self.has_text = False, "", True
        self._whole(text)


def _end_of_line(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end
