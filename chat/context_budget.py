"""Fits a model call into the model's context window by shortening or leaving out what is least needed, and says so.

In this order, until the call fits: results of earlier tool calls, tools that are rarely needed, the oldest messages of
the conversation, the newest results, and at last what the turn says besides the user's own words. A tool call keeps its
result, and the system message and the user's words stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol

from django.utils.translation import gettext
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from adiuva.llm.base import MAX_CHAT_TOKENS
from adiuva.llm.context_window import ContextWindow

_OLD_RESULT_CHARS: Final = 300
_LEAST_RESULT_CHARS: Final = 300
_LEAST_REQUEST_CHARS: Final = 600
# Tools may take one part in so many of a request before some are left out; at least this number of them stays.
_TOOLS_PART: Final = 3
_LEAST_TOOLS: Final = 4
# The tools that small models need most, the first ones most; a tool that is not named here is left out first.
_NEEDED_MOST: Final = (
    "list_tasks", "create_task", "list_notes", "update_task", "list_projects", "list_timelines", "get_note",
    "create_note", "delete", "create_timeline", "create_project", "update_note", "remember",
)  # fmt: skip
_SHORTENED: Final = (
    "({count:,} more characters did not fit and are left out. Ask for less at once to see them.)"
)
_MESSAGES_LEFT_OUT: Final = "[From the app: earlier messages did not fit and are left out.]"
_TOOLS_LEFT_OUT: Final = (
    "[From the app: not all tools fitted. What none of the others can do, you cannot do now, and say so.]"
)
# Marks the message that holds the user's request among the messages of a turn.
REQUEST: Final = "is_request"


class _HasWindow(Protocol):
    @property
    def window(self) -> ContextWindow: ...


class LeftOut(StrEnum):
    MESSAGES = "messages"
    RESULTS = "results"
    TOOLS = "tools"


@dataclass
class ContextBudget:
    """The bounds of a model's window, by parts. A window of 0 tokens is unknown: then nothing is bounded by it."""

    model: _HasWindow
    left_out: set[LeftOut] = field(default_factory=set)

    @property
    def window(self) -> ContextWindow:
        """The model's window, read each time: a model with another window may stand in for the first."""
        return self.model.window

    @property
    def answer_tokens(self) -> int:
        tokens = self.window.tokens
        return min(MAX_CHAT_TOKENS, tokens // 4) if tokens else MAX_CHAT_TOKENS

    @property
    def request_bytes(self) -> int | None:
        """The bytes that a request may have; None if that is unknown."""
        tokens = self.window.tokens
        # The chat template adds tokens of its own, and the estimate may be a little too low.
        return self.window.bytes_of(int((tokens - self.answer_tokens) * 0.95)) if tokens else None

    def part(self, share: int, most: int) -> int:
        """Return a share of a request in characters: one in `share` parts of it, at most `most`."""
        size = self.request_bytes
        return most if size is None else min(most, size // share)

    def notice(self) -> str:
        """Tell the user what was left out; "" if they need not know."""
        if {LeftOut.MESSAGES, LeftOut.RESULTS} <= self.left_out:
            return gettext(
                "The model reads little at once: earlier messages and parts of what was read were left out."
            )
        if LeftOut.MESSAGES in self.left_out:
            return gettext("The model reads little at once: earlier messages were left out.")
        if LeftOut.RESULTS in self.left_out:
            return gettext("The model reads little at once: parts of what was read were left out.")
        return ""

    def fit(
        self,
        messages: Sequence[BaseMessage],
        tools: Sequence[Mapping[str, Any]],
        size_of: Callable[[Sequence[BaseMessage], Sequence[Mapping[str, Any]]], int],
    ) -> FittedCall:
        """Return the messages and tools of a call, as they fit. `size_of` returns a request's bytes."""
        most = self.request_bytes
        if most is None:
            return FittedCall(messages, tools, None)
        if (size := size_of(messages, tools)) <= most:
            return FittedCall(messages, tools, size)
        call = _Call(list(messages), list(tools), most, size_of)
        for step in (call.shorten_old_results, call.leave_out_tools, call.leave_out_messages,
                     call.shorten_results, call.shorten_request):  # fmt: skip
            step()
            if call.excess <= 0:
                break
        self.left_out |= call.left_out
        return FittedCall(call.messages, call.tools, call.size)


class FittedCall(NamedTuple):
    """`size` in bytes; None if it was not measured."""

    messages: Sequence[BaseMessage]
    tools: Sequence[Mapping[str, Any]]
    size: int | None


class _Call:
    """A call that does not fit yet."""

    def __init__(
        self,
        messages: list[BaseMessage],
        tools: list[Mapping[str, Any]],
        most: int,
        size_of: Callable[[Sequence[BaseMessage], Sequence[Mapping[str, Any]]], int],
    ) -> None:
        self.messages, self.tools, self.left_out = messages, tools, set[LeftOut]()
        self._most, self._size_of = most, size_of
        self.size = 0

    @property
    def excess(self) -> int:
        self.size = self._size_of(self.messages, self.tools)
        return self.size - self._most

    def shorten_old_results(self) -> None:
        newest = self._newest_results()
        for place, message in enumerate(self.messages):
            if place >= newest or self.excess <= 0:
                break
            if isinstance(message, ToolMessage):
                self._shorten_result(place, _OLD_RESULT_CHARS)

    def leave_out_tools(self) -> None:
        used = {
            call["name"]
            for message in self.messages
            if isinstance(message, AIMessage)
            for call in message.tool_calls
        }
        rank = {name: place for place, name in enumerate(_NEEDED_MOST)}
        order = sorted(
            self.tools, key=lambda tool: (_name(tool) not in used, rank.get(_name(tool), len(rank)))
        )
        while (
            len(order) > max(_LEAST_TOOLS, len(used))
            and self.excess > 0
            and self._size_of([], order) > self._most // _TOOLS_PART
        ):
            dropped = order.pop()
            self.tools = [tool for tool in self.tools if tool is not dropped]
            self._note(LeftOut.TOOLS, _TOOLS_LEFT_OUT)

    def leave_out_messages(self) -> None:
        request = self._request()
        while self.excess > 0 and request > 1:
            count = (
                next((n for n in range(2, request) if isinstance(self.messages[n], HumanMessage)), request)
                - 1
            )  # up to the user's next message
            del self.messages[1 : 1 + count]
            request -= count
            self._note(LeftOut.MESSAGES, _MESSAGES_LEFT_OUT)

    def shorten_results(self) -> None:
        places = [place for place, one in enumerate(self.messages) if isinstance(one, ToolMessage)]
        for _ in range(4):  # cutting removes escapes too, so a part of the excess may remain
            if (excess := self.excess) <= 0:
                return
            long = [place for place in places if len(str(self.messages[place].content)) > _LEAST_RESULT_CHARS]
            whole = sum(len(str(self.messages[place].content)) for place in long)
            for place in long:
                size = len(str(self.messages[place].content))
                kept = int(size - (excess + 200 * len(long)) * size / whole)
                self._shorten_result(place, max(_LEAST_RESULT_CHARS, kept))

    def shorten_request(self) -> None:
        place = self._request()
        text = str(self.messages[place].content)
        kept = max(_LEAST_REQUEST_CHARS, len(text) - self.excess - len(_SHORTENED))
        if kept < len(text):
            # The user's own words are at the end.
            head, tail = text[: kept // 4], text[len(text) - (kept - kept // 4) :]
            self.messages[place] = _with(
                self.messages[place], f"{head}\n{_SHORTENED.format(count=len(text) - kept)}\n{tail}"
            )
            self.left_out.add(LeftOut.RESULTS)

    def _note(self, what: LeftOut, words: str) -> None:
        """Tell the model, once, that something was left out."""
        if what not in self.left_out:
            self.left_out.add(what)
            place = self._request()
            self.messages[place] = _with(self.messages[place], f"{words}\n\n{self.messages[place].content}")

    def _newest_results(self) -> int:
        """Return where the results of the newest calls begin."""
        place = len(self.messages)
        while place and not (isinstance(one := self.messages[place - 1], AIMessage) and one.tool_calls):
            place -= 1
        return place

    def _request(self) -> int:
        return next(
            (place for place, one in enumerate(self.messages) if one.additional_kwargs.get(REQUEST)),
            min(1, len(self.messages) - 1),
        )

    def _shorten_result(self, place: int, most: int) -> None:
        text = str(self.messages[place].content)
        if len(text) <= most + len(_SHORTENED):
            return
        kept = text[:most].rpartition("\n")[0] or text[:most]
        self.messages[place] = _with(
            self.messages[place], f"{kept}\n{_SHORTENED.format(count=len(text) - len(kept))}"
        )
        self.left_out.add(LeftOut.RESULTS)


def _with(message: BaseMessage, text: str) -> BaseMessage:
    return message.model_copy(update={"content": text})


def _name(tool: Mapping[str, Any]) -> str:
    return str(tool["function"]["name"])
