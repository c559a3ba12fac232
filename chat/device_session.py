"""What a turn's tools work with: the line to the user's device, the user's clock, the account of what was read and
changed.

A device's answer is data of an untrusted author: what is not an answer to what was asked is said to be that, in the
same plain sentences as a device that is away, and never looks like an empty list.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, Final, Unpack
from zoneinfo import ZoneInfo

import orjson
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ToolException

from adiuva.core.errors import AdiuvaError
from adiuva.devices.calls import CallFields, new_call
from adiuva.devices.codec import MAX_FRAME_BYTES
from adiuva.devices.link import DeviceLink, DeviceOffline, DeviceUnreachable, OutcomeUnknown
from adiuva.devices.protocol import WRITES, Action, Data, Mutation, TableName, ToolCall, ToolResultBody
from adiuva.devices.tables import TABLES

NOUNS: Final[dict[str, tuple[str, str]]] = {
    "tasks": ("task", "tasks"),
    "projects": ("project", "projects"),
    "timelines": ("timeline entry", "timeline entries"),
    "notes": ("note", "notes"),
    "taskComments": ("comment", "comments"),
    "clients": ("client", "clients"),
}
MAX_TITLE_CHARS: Final = 200  # characters of a title, as it is shown
_MAX_RECENT_ROWS: Final = 1_000  # rows that `said` looks into
_MAX_NAME_ROWS: Final = 1_000  # projects or clients that are read for their names
_MAX_CALL_BYTES: Final = MAX_FRAME_BYTES - 16 * 1024  # leaves room for the envelope
# An id is written between brackets and commas, and a client finds it between tags.
_ROW_ID = re.compile(r"[^\s\[\]<>,\"]{1,200}")
# Marks without a width: they hide text, turn it around or carry some that nobody sees. Joiners belong to scripts.
_INVISIBLE = re.compile(
    "[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_JOINERS = re.compile("[\u200c\u200d]")
_ID_MARKER = re.compile(r"\[\s*id\b", re.IGNORECASE)

_OFFLINE: Final = "Failed: the device is offline, so nothing was read or changed."
_UNREACHABLE: Final = "Failed: the server cannot reach the device for now, so nothing was read or changed."
_TIMED_OUT: Final = "Failed: the device did not answer in time. Nothing was changed."
_OUTCOME_UNKNOWN: Final = (
    "Failed: the device did not answer in time; it may have happened all the same. Look before you retry."
)
_UNREADABLE: Final = "Failed: the device gave an answer that cannot be read"


class DeviceRefused(ToolException):
    """The device's own error."""


def one_line(text: object, most: int = MAX_TITLE_CHARS) -> str:
    """A text of the user's data on one line, so that it cannot pose as a line, or as a row's id, of ours."""
    if not isinstance(text, str):
        return ""
    text = text[: 4 * most]
    if not text.isprintable():
        text = _CONTROL.sub(" ", _INVISIBLE.sub("", text))
    text = " ".join(text.split())
    if "[" in text and _ID_MARKER.search(_JOINERS.sub("", text)):
        text = text.replace("[", "(").replace("]", ")")
    return text if len(text) <= most else text[: most - 1] + "…"


class DeviceSession:
    """`mutations` holds what happened, each row as the device returned it; a delete has its id.

    `titles` says what every row is called, by id, that a tool returned or changed in this turn.
    """

    def __init__(self, link: DeviceLink, *, zone: ZoneInfo, now: datetime) -> None:
        self.link, self.zone, self.now = link, zone, now
        self.today: date = now.astimezone(zone).date()
        self.mutations: list[Mutation] = []
        self.titles: dict[str, str] = {}
        self._tables: dict[str, str] = {}  # id → table, for all that is in `titles`
        self._named: set[str] = set()  # tables whose names were read
        self._rows: deque[Data] = deque(maxlen=_MAX_RECENT_ROWS)

    async def call(
        self, action: Action, table: TableName | None = None, **fields: Unpack[CallFields]
    ) -> ToolResultBody:
        """Send one call; returns the device's answer, which fits what was asked. Raises ToolException in words for the
        model."""
        call = new_call(action, table, **fields)
        if (unfit := _check_sendable(call)) is not None:
            raise unfit
        try:
            answer = await self.link.call(call)
        except AdiuvaError as error:
            raise _tool_error(error, action) from None
        outcome = self._judge(call, answer)
        if isinstance(outcome, ToolException):
            raise outcome
        return outcome

    async def call_many(self, calls: Sequence[ToolCall]) -> list[ToolResultBody | ToolException]:
        """An outcome for each call, in one frame where the device takes several at once."""
        outcomes: dict[str, ToolResultBody | ToolException] = {}
        for call in calls:
            if (unfit := _check_sendable(call)) is not None:
                outcomes[call.id] = unfit
        fit = [call for call in calls if call.id not in outcomes]
        try:
            answers = await self.link.send_calls(fit) if fit else []
        except AdiuvaError as error:
            outcomes |= {call.id: _tool_error(error, call.action) for call in fit}
        else:
            for call, answer in zip(fit, answers, strict=True):
                if isinstance(answer, AdiuvaError):
                    outcomes[call.id] = _tool_error(answer, call.action)
                else:
                    outcomes[call.id] = self._judge(call, answer)
        return [outcomes[call.id] for call in calls]

    async def select(
        self, table: TableName, *filters: Data, limit: int, names_of: TableName | None = None
    ) -> list[Data]:
        """Rows of one select for each of `filters`, each row once.

        The names of the rows that they belong to (`names_of`) are read along, in the same frame and once a turn;
        without them the rows are as good.
        """
        calls = [new_call("select", table, filters=given, limit=limit) for given in filters]
        if names_of is not None and names_of not in self._named:
            everything: Data = {"includeArchived": True} if names_of == "projects" else {}
            calls.append(new_call("select", names_of, filters=everything, limit=_MAX_NAME_ROWS))
        if len(calls) == 1:
            outcomes: Sequence[ToolResultBody | ToolException] = [
                await self.call("select", table, filters=filters[0], limit=limit)
            ]
        else:
            outcomes = await self.call_many(calls)
        found: dict[str, Data] = {}
        for outcome in outcomes[: len(filters)]:
            if isinstance(outcome, ToolException):
                raise outcome
            for row in outcome.rows or []:
                found.setdefault(row["id"], row)
        if names_of is not None and isinstance(outcomes[-1], ToolResultBody):
            self._named.add(names_of)
        return list(found.values())

    async def title_of(self, table: str, key: str) -> str | None:
        """What a row is called, asked of the device if it has not been seen yet; None: there is no such row."""
        if key in self.titles and self._tables[key] == table:
            return self.titles[key]
        if table not in TABLES or not is_row_id(key):
            return None
        answer = await self.call("get", table, data={"id": key})  # type: ignore[arg-type]
        return self.titles[key] if answer.row is not None else None

    def has_recent_word(self, word: str) -> bool:
        """Whether a word stands in one of the last rows that were returned, so that it is the user's own."""
        if not word:
            return False
        pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
        return any(
            isinstance(value, str) and pattern.search(value) for row in self._rows for value in row.values()
        )

    def _judge(self, call: ToolCall, answer: ToolResultBody) -> ToolResultBody | ToolException:
        """The answer, and what it says entered in the books; or why it is none."""
        if answer.error is not None:
            reason = one_line(answer.error, 300).rstrip(".") or "it gave no reason"
            return DeviceRefused(f"Failed: the device refused: {reason}.")
        key = (call.data or {}).get("id")
        match call.action, answer:
            case "select", ToolResultBody(rows=list() as rows) if all(_is_valid_row(row) for row in rows):
                self._see(call.table, rows)
            case "get", ToolResultBody(row=None) if _is_empty_result(answer):
                pass
            case "get", ToolResultBody(row=dict() as row) if _is_valid_row(row, key):
                self._see(call.table, [row])
            case ("insert", ToolResultBody(row=dict() as row)) if _is_valid_row(row):
                self._changed("insert", call.table, row)
            case ("update", ToolResultBody(row=dict() as row)) if _is_valid_row(row, key):
                self._changed("update", call.table, row)
            case "delete", ToolResultBody(deleted=True):
                self._changed("delete", call.table, {"id": key})
            case "delete", ToolResultBody(deleted=False):
                return ToolException(missing_row_text(call.table, key))
            case "vector_upsert", ToolResultBody(ok=True):
                pass
            case "vector_search", ToolResultBody(results=list() as results) if all(
                map(_is_valid_row, results)
            ):
                pass
            case _ if call.action in WRITES:
                return ToolException(f"{_UNREADABLE}; it may have happened all the same.")
            case _:
                return ToolException(f"{_UNREADABLE}.")
        return answer

    def _see(self, table: TableName | None, rows: Sequence[Data]) -> None:
        assert table is not None
        column = TABLES[table].title
        for row in rows:
            key = row["id"]
            self.titles[key] = one_line(row.get(column)) or "(untitled)"
            self._tables[key] = table
        self._rows.extend(rows)

    def _changed(self, action: Any, table: TableName | None, data: Data) -> None:
        assert table is not None
        self.mutations.append(Mutation(action=action, table=table, data=data))
        if action != "delete":
            self._see(table, [data])


def device_session_of(config: RunnableConfig) -> DeviceSession:
    """The desk of the turn that a tool runs in."""
    session = config["configurable"]["session"]
    assert isinstance(session, DeviceSession)
    return session


def missing_row_text(table: str | None, key: object) -> str:
    """The sentence for a row that is not there."""
    return f"Failed: there is no {NOUNS[table or ''][0]} with the id {one_line(key) or '(none)'}."


def is_row_id(key: object) -> bool:
    """Whether an id can be written among ours."""
    return isinstance(key, str) and key.isprintable() and _ROW_ID.fullmatch(key) is not None


def _is_valid_row(row: Data, key: object = None) -> bool:
    """Whether it can be spoken of, and is the one that was asked for."""
    return is_row_id(row.get("id")) and key in (None, row["id"])


def _is_empty_result(answer: ToolResultBody) -> bool:
    return answer.rows is None and answer.results is None and answer.deleted is None and answer.ok is None


def _check_sendable(call: ToolCall) -> ToolException | None:
    """Why a call cannot be put into a frame: what a model wrote may be anything."""
    try:
        size = len(orjson.dumps([call.data, call.filters]))
    except orjson.JSONEncodeError:
        return ToolException("Failed: what was given holds characters that are no text.")
    if size > _MAX_CALL_BYTES:
        return ToolException("Failed: what was given is too long for the device.")
    return None


def _tool_error(error: AdiuvaError, action: str) -> ToolException:
    match error:
        case DeviceUnreachable():
            return ToolException(_UNREACHABLE)
        case DeviceOffline():
            return ToolException(_OFFLINE)
        case OutcomeUnknown():
            return ToolException(_OUTCOME_UNKNOWN if action in WRITES else _TIMED_OUT)
    return ToolException(f"Failed: {error.message}.")
