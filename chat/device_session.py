"""The device as a turn's tools use it: the link, the user's clock, and the rows that were read and changed.

A device's answer is untrusted data. If it does not fit the call, or the device is away, the model is told so in plain
words; that never looks like an empty list.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date, datetime
from typing import Any, Final, NamedTuple, Unpack
from zoneinfo import ZoneInfo

import orjson
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ToolException

from adiuva.core.errors import AdiuvaError, Text
from adiuva.devices import tool_results
from adiuva.devices.calls import CallFields, new_call
from adiuva.devices.codec import MAX_FRAME_BYTES
from adiuva.devices.large_selects import PartialSelect
from adiuva.devices.link import (
    AnswerUnreadable,
    DeviceLink,
    DeviceOffline,
    DeviceUnreachable,
    OutcomeUnknown,
)
from adiuva.devices.protocol import WRITES, Action, Data, Mutation, TableName, ToolCall, ToolResultBody
from adiuva.devices.tables import NOUNS, TABLES
from adiuva.sanitizer import addresses_in
from chat.foreign_text import ForeignTexts
from chat.row_aliases import RowAliases
from chat.turn_changes import RecordedChange
from chat.untrusted_text import is_row_id, one_line

MAX_RESULT_CHARS: Final = 20_000
# `has_recent_word` searches the last rows that the device returned.
_MAX_RECENT_ROWS: Final = 1_000
# The most projects or clients that are read along for their names.
_MAX_NAME_ROWS: Final = 1_000
# The most bytes of a call's data and filters; the rest of the frame is left for its envelope.
_MAX_CALL_BYTES: Final = MAX_FRAME_BYTES - 16 * 1024
_OFFLINE: Final = "Failed: the device is offline, so nothing was read or changed."
_UNREACHABLE: Final = "Failed: the server cannot reach the device for now, so nothing was read or changed."
_TIMED_OUT: Final = "Failed: the device did not answer in time. Nothing was changed."
_OUTCOME_UNKNOWN: Final = (
    "Failed: the device did not answer in time; it may have happened all the same. Look before you retry."
)
_UNREADABLE: Final = "Failed: the device gave an answer that cannot be read"
_TOO_LARGE: Final = "Failed: this is too large to be read from the device in one piece."

# Remarks for the answer of the running tool, such as that rows are missing.
_remarks: ContextVar[list[str] | None] = ContextVar("remarks", default=None)


@contextmanager
def collected_remarks() -> Iterator[list[str]]:
    """Collect the remarks of reads from the device while a tool runs."""
    remarks: list[str] = []
    token = _remarks.set(remarks)
    try:
        yield remarks
    finally:
        _remarks.reset(token)


def _remark(text: str) -> None:
    if (remarks := _remarks.get()) is not None and text not in remarks:
        remarks.append(text)


class DeviceToolError(ToolException):
    """The device answered with an error of its own."""


class Selected(NamedTuple):
    """Rows of the device. `is_cut`: a query has reached its limit, so there may be more."""

    rows: list[Data]
    is_cut: bool


class DeviceSession:
    """`mutations`: the changes of this turn, each row as the device returned it; of a deleted row, its id.

    `titles`: the title, by id, of every row that a tool returned or changed in this turn.
    `named_references`: the rows that the tool which is running has named as another's project or client.
    `changes`: the mutations with the rows as they were before.
    `addresses`: the links in rows that were read.
    `foreign`: the texts that were read and that the user did not write.
    `max_result_chars`: how long one tool's answer may be.
    """

    def __init__(
        self, link: DeviceLink, *, zone: ZoneInfo, now: datetime, foreign: ForeignTexts | None = None
    ) -> None:
        self.link, self.zone, self.now = link, zone, now
        self.foreign = ForeignTexts() if foreign is None else foreign
        self.max_result_chars = MAX_RESULT_CHARS
        self.today: date = now.astimezone(zone).date()
        self.mutations: list[Mutation] = []
        self.changes: list[RecordedChange] = []
        self.titles: dict[str, str] = {}
        self.aliases = RowAliases()
        self.named_references: set[str] = set()
        self._latest: dict[tuple[str, str], Data] = {}  # each row as last returned
        self.addresses: set[str] = set()
        self._tables: dict[str, str] = {}  # by row id, for all rows in `titles`
        self._named: set[str] = set()  # tables that were read for the names of their rows
        self._unshown: set[str] = set()  # calls whose rows the model is not shown, except for their titles
        self._rows: deque[Data] = deque(maxlen=_MAX_RECENT_ROWS)

    async def call(
        self, action: Action, table: TableName | None = None, **fields: Unpack[CallFields]
    ) -> ToolResultBody:
        """Send one call; return the device's answer, which fits it. Raises ToolException, in words for the model."""
        call = new_call(action, table, **fields)
        if (unfit := _check_sendable(call)) is not None:
            raise unfit
        if action in ("update", "delete"):
            return await self._change(call)
        try:
            answer = await self.link.call(call)
        except AdiuvaError as error:
            raise _tool_error(error, action) from None
        outcome = self._check_answer(call, answer)
        if isinstance(outcome, ToolException):
            raise outcome
        return outcome

    async def _change(self, call: ToolCall) -> ToolResultBody:
        """Send an update or delete. Unless this turn has read the row, read it first: an undo needs it."""
        key = (call.data or {}).get("id")
        outcome: ToolResultBody | ToolException
        if (call.table, key) in self._latest or not is_row_id(key):
            [outcome] = await self.call_many([call])
        else:
            before = new_call("get", call.table, data={"id": key})
            self._unshown.add(before.id)
            try:
                # Both go in one frame, which a device handles in order; to a device without batches they go one after
                # the other.
                if (await self.link.target()).can("batch"):
                    _, outcome = await self.call_many([before, call])
                else:
                    self._check_answer(before, await self.link.call(before))
                    [outcome] = await self.call_many([call])
            except AdiuvaError as error:
                raise _tool_error(error, before.action) from None
        if isinstance(outcome, ToolException):
            raise outcome
        return outcome

    async def call_many(
        self, calls: Sequence[ToolCall], *, shown: bool = True
    ) -> list[ToolResultBody | ToolException]:
        """Return an outcome for each call; they go in one frame if the device accepts batches.

        `shown`: whether the model is shown the rows.
        """
        if not shown:
            self._unshown |= {call.id for call in calls}
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
                    outcomes[call.id] = self._check_answer(call, answer)
        return [outcomes[call.id] for call in calls]

    async def select(
        self, table: TableName, *filters: Data, limit: int, names_of: TableName | None = None
    ) -> Selected:
        """Return the rows that match any of `filters`, each row once; of each filter at most `limit`.

        Also reads, in the same frame and once a turn, the rows of the table `names_of` for the names that the result
        refers to. If that fails, the rows are returned without them.
        """
        calls = [new_call("select", table, filters=given, limit=limit) for given in filters]
        if names_of is not None and names_of not in self._named:
            everything: Data = {"includeArchived": True} if names_of == "projects" else {}
            calls.append(new_call("select", names_of, filters=everything, limit=_MAX_NAME_ROWS))
            self._unshown.add(calls[-1].id)
        if len(calls) == 1:
            outcomes: Sequence[ToolResultBody | ToolException] = [
                await self.call("select", table, filters=filters[0], limit=limit)
            ]
        else:
            outcomes = await self.call_many(calls)
        found: dict[str, Data] = {}
        is_cut = False
        for outcome in outcomes[: len(filters)]:
            if isinstance(outcome, ToolException):
                raise outcome
            rows = outcome.rows or []
            is_cut = is_cut or len(rows) >= limit
            for row in rows:
                found.setdefault(row["id"], row)
        if names_of is not None and isinstance(outcomes[-1], ToolResultBody):
            self._named.add(names_of)
        return Selected(list(found.values()), is_cut)

    async def title_of(self, table: str, key: str) -> str | None:
        """Return a row's title, read from the device unless this turn has seen it; None if there is no such row."""
        if key in self.titles and self._tables[key] == table:
            return self.titles[key]
        if table not in TABLES or not is_row_id(key):
            return None
        answer = await self.call("get", table, data={"id": key})  # type: ignore[arg-type]
        return self.titles[key] if answer.row is not None else None

    def shown_id(self, table: str | None, key: object) -> object:
        """Return an id as a model reads it: the row's alias, or the model's own invention."""
        return self.aliases.alias(table or "", key) if isinstance(key, str) and key in self.titles else key

    def has_recent_word(self, word: str) -> bool:
        """Return whether one of the last returned rows contains the word, so that it comes from the user's data."""
        if not word:
            return False
        pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
        return any(
            isinstance(value, str) and pattern.search(value) for row in self._rows for value in row.values()
        )

    def _check_answer(self, call: ToolCall, answer: ToolResultBody) -> ToolResultBody | ToolException:
        """Record the answer's rows and changes and return it; or return an exception that says why it does not fit."""
        if answer.code == tool_results.MALFORMED and answer.error is not None:
            return ToolException(f"{_UNREADABLE}.")
        if answer.error is not None and answer.code == tool_results.TOO_LARGE:
            return ToolException(_TOO_LARGE)
        if answer.error is not None:
            reason = one_line(answer.error, 300).rstrip(".") or "it gave no reason"
            return DeviceToolError(Text("Failed: the device refused: {reason}.", reason=reason))
        key = (call.data or {}).get("id")
        match call.action, answer:
            case "select", ToolResultBody(rows=list() as rows) if _has_valid_row(rows):
                if isinstance(answer, PartialSelect) and not rows:
                    return ToolException(_TOO_LARGE)
                answer = self._readable_rows(call, answer, rows)
                self._record_rows(call.table, answer.rows or [])
                if call.id not in self._unshown:
                    self.foreign.add_rows(call.table or "", answer.rows or [])
            case "get", ToolResultBody(row=None) if _is_empty_result(answer):
                pass
            case "get", ToolResultBody(row=dict() as row) if _is_valid_row(row, key):
                self._record_rows(call.table, [row])
                if call.id not in self._unshown:
                    self.foreign.add_rows(call.table or "", [row])
            case ("insert", ToolResultBody(row=dict() as row)) if _is_valid_row(row):
                self._record_change("insert", call, row)
            case ("update", ToolResultBody(row=dict() as row)) if _is_valid_row(row, key):
                self._record_change("update", call, row)
                self.foreign.add_rows(call.table or "", [row])
            case "delete", ToolResultBody(deleted=True):
                self._record_change("delete", call, {"id": key})
            case "delete", ToolResultBody(deleted=False):
                return ToolException(missing_row_text(call.table, self.shown_id(call.table, key)))
            case "vector_upsert", ToolResultBody(ok=True):
                pass
            case "vector_search", ToolResultBody(results=list() as results) if _has_valid_row(results):
                answer = answer.model_copy(update={"results": [row for row in results if _is_valid_row(row)]})
            case _ if call.action in WRITES:
                return ToolException(f"{_UNREADABLE}; it may have happened all the same.")
            case _:
                return ToolException(f"{_UNREADABLE}.")
        return answer

    def _readable_rows(self, call: ToolCall, answer: ToolResultBody, rows: list[Data]) -> ToolResultBody:
        """Return the answer without unreadable rows, after remarking how many are missing, and why."""
        valid = [row for row in rows if _is_valid_row(row)]
        if call.id not in self._unshown:
            nouns = NOUNS[call.table or ""]
            if bad := len(rows) - len(valid):
                _remark(
                    f"Besides, {bad} {nouns[bad > 1]} could not be read: the device gave no valid rows for them."
                )
            if isinstance(answer, PartialSelect) and (large := answer.skipped):
                _remark(f"Besides, {large} {nouns[large > 1]} could not be read: too large for a list.")
            if isinstance(answer, PartialSelect) and answer.has_more:
                _remark(f"There are more {nouns[1]}: the device could not send all at once. Narrow the list.")
        return answer.model_copy(update={"rows": valid}) if len(valid) < len(rows) else answer

    def _record_rows(self, table: TableName | None, rows: Sequence[Data]) -> None:
        assert table is not None
        column = TABLES[table].title
        self._rows.extend(rows)
        for row in rows:
            key = row["id"]
            self.titles[key] = one_line(row.get(column)) or "(untitled)"
            self._tables[key] = table
            self._latest[table, key] = row
            for value in row.values():
                if isinstance(value, str) and (":" in value or "www." in value):
                    self.addresses |= addresses_in(value)

    def _record_change(self, action: Any, call: ToolCall, data: Data) -> None:
        table = call.table
        assert table is not None
        if action == "delete":
            # A device names the row by its id alone, and people know it by its title.
            column, row = TABLES[table].title, self._latest.get((table, data["id"]), {})
            data = {**({column: row[column]} if row.get(column) else {}), **data}
        self.mutations.append(Mutation(action=action, table=table, data=data))
        self.changes.append(
            RecordedChange(
                action,
                table,
                data["id"],
                before=None if action == "insert" else self._latest.get((table, data["id"])),
                after=None if action == "delete" else data,
                columns=tuple((call.data or {}).get("updates") or ()),
            )
        )
        if action != "delete":
            self._record_rows(table, [data])


def device_session_of(config: RunnableConfig) -> DeviceSession:
    """Return the device session of the turn that a tool runs in."""
    session = config["configurable"]["session"]
    assert isinstance(session, DeviceSession)
    return session


def missing_row_text(table: str | None, key: object) -> str:
    """Return the text that tells the model that a row does not exist."""
    return f"Failed: there is no {NOUNS[table or ''][0]} with the id {one_line(key) or '(none)'}."


def _is_valid_row(row: Data, key: object = None) -> bool:
    """Return whether a row's id can be written and is `key`, if one is given."""
    return is_row_id(row.get("id")) and key in (None, row["id"])


def _has_valid_row(rows: list[Data]) -> bool:
    """Return whether a list is empty or has a row that can be read: one bad row costs that row only."""
    return not rows or any(_is_valid_row(row) for row in rows)


def _is_empty_result(answer: ToolResultBody) -> bool:
    return answer.rows is None and answer.results is None and answer.deleted is None and answer.ok is None


def _check_sendable(call: ToolCall) -> ToolException | None:
    """Return why a call cannot be put into a frame, or None: a model may have written anything."""
    try:
        size = len(orjson.dumps([call.data, call.filters]))
    except orjson.JSONEncodeError:
        return ToolException("Failed: the arguments contain characters that are not valid text.")
    if size > _MAX_CALL_BYTES:
        return ToolException("Failed: the arguments are too long for the device.")
    return None


def _tool_error(error: AdiuvaError, action: str) -> ToolException:
    match error:
        case DeviceUnreachable():
            return ToolException(_UNREACHABLE)
        case AnswerUnreadable():
            return ToolException(f"{_UNREADABLE}; it may have happened all the same.")
        case DeviceOffline():
            return ToolException(_OFFLINE)
        case OutcomeUnknown():
            return ToolException(_OUTCOME_UNKNOWN if action in WRITES else _TIMED_OUT)
    return ToolException(f"Failed: {error.message}.")
