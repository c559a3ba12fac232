"""The user's rows in one SQLite file, and the tool calls that read and write them.

A write, its entry in the list of applied calls and its result are one transaction, so that a repeated call (the server
did not receive the answer) gets the stored result and changes nothing. `synchronous=FULL` makes a result leave the
device after the row is on the disk, since the server forgets a record once it has the result.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import orjson

from adiuva.devices.client.errors import BadWorkspace, CallRefused
from adiuva.devices.client.query import column_sql, select_sql
from adiuva.devices.protocol import WRITES
from adiuva.devices.tables import TABLES, Column, Table, is_value

DATA_FILE: Final = "data.sqlite3"  # in a workspace
KEEP_CALLS_MS: Final = 30 * 24 * 3600 * 1000
# SQLite's errors that have nothing to do with the call, so that it may succeed later.
_MAY_PASS: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}
_DAY_MS: Final = 24 * 3600 * 1000
_INDEXED: Final = ("projectId", "taskId", "clientId")

_OWN_TABLES = """
CREATE TABLE IF NOT EXISTS adiuva_about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS adiuva_calls (
    id TEXT PRIMARY KEY, result BLOB NOT NULL, applied_at INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS adiuva_calls_applied_at ON adiuva_calls (applied_at);
CREATE TABLE IF NOT EXISTS adiuva_vectors (
    id TEXT PRIMARY KEY, project_id TEXT, content TEXT NOT NULL,
    dimension INTEGER NOT NULL, vector BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS adiuva_origins (
    row_id TEXT PRIMARY KEY, run_id TEXT NOT NULL, source TEXT NOT NULL, noted_at INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS adiuva_vectors_dimension ON adiuva_vectors (dimension);
CREATE TABLE IF NOT EXISTS adiuva_hashes (
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL
);
"""

Row = dict[str, Any]
Call = Mapping[str, Any]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


# More than 15 methods: one for each tool call that a device answers, under one lock.
class Store:
    """Data of one device. Any thread may call every method; a lock lets one run at a time."""

    def __init__(self, path: Path | None = None) -> None:
        """Open or create the file; None keeps everything in memory. Raises BadWorkspace."""
        self.on_disk = path is not None
        self._lock = threading.RLock()
        self._pruned_at = 0
        try:
            if path is not None:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise BadWorkspace(f"The workspace's data cannot be opened ({error}).") from error

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # ── Calls ───────────────────────────────────────────────────────────────────────────────────────────

    def apply(self, calls: Sequence[Call]) -> list[Row]:
        """Apply calls in order and give each its result: the body of a `tool_result`, perhaps an `error`.

        All calls share one transaction; a call that fails undoes only itself. A call that cannot be saved is not
        applied.
        """
        with self._lock:
            try:
                with self._transaction():
                    self._forget_old_calls()
                    return [self._apply(call) for call in calls]
            except sqlite3.Error as error:
                failed = {"error": f"the device could not save this ({error})"}
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in _MAY_PASS:
                    failed["code"] = "not_saved"
                return [{"id": call["id"], **failed} for call in calls]

    def _apply(self, call: Call) -> Row:
        action = call.get("action")
        if action not in WRITES:
            return {"id": call["id"], **self._outcome(call)}
        stored = self._db.execute("SELECT result FROM adiuva_calls WHERE id = ?", (call["id"],)).fetchone()
        if stored is not None:
            repeated: Row = orjson.loads(stored[0])
            return {"id": call["id"], **repeated}
        outcome = self._outcome(call)
        self._db.execute(
            "INSERT INTO adiuva_calls VALUES (?, ?, ?)", (call["id"], orjson.dumps(outcome), now_ms())
        )
        return {"id": call["id"], **outcome}

    def _outcome(self, call: Call) -> Row:
        """Return the result without its id. Refusals are results too and are kept: a repeat must not succeed later."""
        self._db.execute("SAVEPOINT a_call")
        try:
            outcome = self._do(call)
        except (CallRefused, sqlite3.IntegrityError, UnicodeError, OverflowError) as error:
            self._db.execute("ROLLBACK TO a_call")
            outcome = {"error": str(error)}
        self._db.execute("RELEASE a_call")
        return outcome

    def _do(self, call: Call) -> Row:
        data = _mapping(call, "data")
        match call.get("action"):
            case "select":
                filters, limit, offset = _mapping(call, "filters"), call.get("limit"), call.get("offset")
                return {"rows": self.select(_table(call), filters, limit, offset)}
            case "get":
                return {"row": self._get(_table(call), _key(data))}
            case "insert":
                row = self._insert(_table(call), data)
                self._note_origin(row["id"], _mapping(call, "origin"))
                return {"row": row}
            case "update":
                return {"row": self._update(_table(call), _key(data), _mapping(data, "updates"))}
            case "delete":
                return {"deleted": self._delete(_table(call), _key(data))}
            case "vector_upsert" | "vector_search":
                return self._vector_call(call, data)
        raise CallRefused("this device does not know that action")

    def _vector_call(self, call: Call, data: Mapping[str, Any]) -> Row:
        from adiuva.devices.client import vectors  # numpy takes 14 MB, and most workspaces have no vector

        if call["action"] == "vector_search":
            return {"results": vectors.search(self._db, call.get("vector"), call.get("limit"))}
        project, content = data.get("projectId"), data.get("content")
        if not isinstance(content, str) or not isinstance(project, str | None):
            raise CallRefused("a vector needs its content, a text, and may have a projectId")
        vectors.upsert(self._db, call.get("vector"), key=_key(data), project=project, content=content)
        return {"ok": True}

    def select(
        self,
        table: Table,
        filters: Mapping[str, Any] | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[Row]:
        """Return a table's rows. Raises CallRefused for a wrong filter."""
        sql, values = select_sql(table, filters or {}, limit, offset)
        with self._lock:
            return [dict(zip(table.by_name, row, strict=True)) for row in self._db.execute(sql, values)]

    def _get(self, table: Table, key: str) -> Row | None:
        row = self._db.execute(
            f'SELECT {column_sql(table.by_name)} FROM "{table.name}" WHERE "id" = ?',  # noqa: S608
            (key,),
        ).fetchone()
        return dict(zip(table.by_name, row, strict=True)) if row else None

    def _insert(self, table: Table, data: Mapping[str, Any], key: str | None = None) -> Row:
        values = _checked(table, data)
        for column in table.columns:
            if column.required and values.get(column.name) is None:
                raise CallRefused(f"{column.name} is required")
        now = now_ms()
        row: Row = {column.name: column.default for column in table.columns} | {
            name: value for name, value in values.items() if value is not None
        }
        row |= {name: now for name in ("createdAt", "updatedAt") if name in row}
        row["id"] = key or uuid.uuid4().hex
        places = ", ".join("?" * len(row))
        self._db.execute(
            f'INSERT INTO "{table.name}" ({column_sql(row)}) VALUES ({places})',  # noqa: S608
            list(row.values()),
        )
        return row

    def _update(self, table: Table, key: str, updates: Mapping[str, Any]) -> Row:
        values = _checked(table, updates)
        if "updatedAt" in table.by_name:
            values["updatedAt"] = now_ms()
        if values:
            settings = ", ".join(f'"{name}" = ?' for name in values)
            self._db.execute(
                f'UPDATE "{table.name}" SET {settings} WHERE "id" = ?',  # noqa: S608
                [*values.values(), key],
            )
        row = self._get(table, key)
        if row is None:
            raise CallRefused(f"there is no row with this id in {table.name}")
        return row

    def _delete(self, table: Table, key: str) -> bool:
        """Delete a row with its vector, so that no search finds it again. Nothing else goes with it."""
        found = self._db.execute(f'DELETE FROM "{table.name}" WHERE "id" = ?', (key,))  # noqa: S608
        if found.rowcount:
            self._db.execute("DELETE FROM adiuva_vectors WHERE id = ?", (key,))
        return bool(found.rowcount)

    def put_back(self, table: Table, row: Row, *, over: Row | None) -> bool:
        """Make a row what it was, unless it differs from `over` (None: not there). Returns whether it was done."""
        with self._lock, self._transaction():
            if self._get(table, row["id"]) != over:
                return False
            places = ", ".join("?" * len(row))
            self._db.execute(
                f'INSERT OR REPLACE INTO "{table.name}" ({column_sql(row)}) VALUES ({places})',  # noqa: S608
                list(row.values()),
            )
        return True

    def _note_origin(self, row_id: str, origin: Mapping[str, Any]) -> None:
        run, source = origin.get("run_id"), origin.get("source")
        if isinstance(run, str) and isinstance(source, str):
            values = (row_id, run, source, now_ms())
            self._db.execute("INSERT OR REPLACE INTO adiuva_origins VALUES (?, ?, ?, ?)", values)

    def origins(self, row_ids: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Return, by the ids of rows that agents found, the id of the run and the source."""
        with self._lock:
            found = [
                self._db.execute(
                    "SELECT row_id, run_id, source FROM adiuva_origins WHERE row_id = ?", (row_id,)
                ).fetchone()
                for row_id in row_ids
            ]
        return {row[0]: (row[1], row[2]) for row in found if row}

    # ── The device's own data ──────────────────────────────────────────────────────────────────────────

    def property(self, name: str) -> str | None:
        with self._lock:
            row = self._db.execute("SELECT value FROM adiuva_about WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def set_property(self, name: str, value: str) -> None:
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO adiuva_about VALUES (?, ?)", (name, value))

    def known_hash(self, path: str, size: int, mtime_ns: int) -> str | None:
        with self._lock:
            row = self._db.execute(
                "SELECT sha256 FROM adiuva_hashes WHERE path = ? AND size = ? AND mtime_ns = ?",
                (path, size, mtime_ns),
            ).fetchone()
        return row[0] if row else None

    def remember_hashes(self, hashes: Iterable[tuple[str, int, int, str]]) -> None:
        """Keep (path, size, mtime_ns, sha256) in place of earlier facts about the path."""
        with self._lock, self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO adiuva_hashes VALUES (?, ?, ?, ?)", hashes)

    def forget_hash(self, path: str) -> None:
        with self._lock:
            self._db.execute("DELETE FROM adiuva_hashes WHERE path = ?", (path,))

    def seed(self, rows: Mapping[str, Any]) -> int:
        """Insert `{table: [row, …]}` into a store that has no rows yet, and return how many were inserted.

        A row may have an `id` for the others to refer to; the device replaces it by an id of its own. Raises
        BadWorkspace if the rows do not fit the tables.
        """
        try:
            made = {row["id"]: uuid.uuid4().hex for table in rows.values() for row in table if "id" in row}
            with self._lock, self._transaction():
                if any(self.select(table, {"includeArchived": True}, 1) for table in TABLES.values()):
                    return 0
                for name, table_rows in rows.items():
                    for row in table_rows:
                        data = {
                            column: made.get(value, value) if column.endswith("Id") else value
                            for column, value in row.items()
                            if column != "id"
                        }
                        self._insert(_table({"table": name}), data, made.get(row.get("id")))
        except (CallRefused, AttributeError, TypeError, sqlite3.Error) as error:
            raise BadWorkspace(f"The seed does not fit the tables ({error}).") from error
        return sum(map(len, rows.values()))

    # ── SQLite ──────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _transaction(self) -> Any:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _prepare(self) -> None:
        self._db.create_function("fold", 1, _fold, deterministic=True)
        if not self.on_disk:
            self._db.execute(
                "PRAGMA page_size = 512"
            )  # an empty table takes a page, and thousands share a process
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = OFF")
        self._db.execute("PRAGMA busy_timeout = 10000")
        self._db.execute("PRAGMA cache_size = -1024")  # KiB
        self._db.executescript(_OWN_TABLES)
        with self._transaction():
            for table in TABLES.values():
                self._prepare_table(table)

    def _prepare_table(self, table: Table) -> None:
        declared = ", ".join(_declare(column) for column in table.columns)
        self._db.execute(f'CREATE TABLE IF NOT EXISTS "{table.name}" ({declared})')
        present = {row[1] for row in self._db.execute(f'PRAGMA table_info("{table.name}")')}
        for column in table.columns:
            if column.name not in present:
                self._db.execute(f'ALTER TABLE "{table.name}" ADD COLUMN {_declare(column)}')
            if column.name in _INDEXED:
                index = f"{table.name}_{column.name}"
                self._db.execute(f'CREATE INDEX IF NOT EXISTS "{index}" ON "{table.name}" ("{column.name}")')

    def _forget_old_calls(self) -> None:
        now = now_ms()
        if now - self._pruned_at >= _DAY_MS:
            self._db.execute("DELETE FROM adiuva_calls WHERE applied_at < ?", (now - KEEP_CALLS_MS,))
            gone = " AND ".join(f'row_id NOT IN (SELECT id FROM "{name}")' for name in TABLES)  # noqa: S608
            self._db.execute(  # deletes those of rows that an undo can no longer bring back
                f"DELETE FROM adiuva_origins WHERE noted_at < ? AND {gone}",  # noqa: S608
                (now - KEEP_CALLS_MS,),
            )
            self._pruned_at = now


def _declare(column: Column) -> str:
    kind = "TEXT" if column.kind in {"text", "names"} else "INTEGER"
    key = " PRIMARY KEY" if column.name == "id" else ""
    default = f" DEFAULT {column.default!r}" if column.default is not None else ""
    return f'"{column.name}" {kind}{key}{default}'


def _fold(value: Any) -> str:
    return value.casefold() if isinstance(value, str) else ""


def _table(call: Call) -> Table:
    name = call.get("table")
    table = TABLES.get(name) if isinstance(name, str) else None
    if table is None:
        raise CallRefused("there is no such table")
    return table


def _mapping(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = holder.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise CallRefused(f"{name} must be an object")
    return value


def _key(data: Mapping[str, Any]) -> str:
    key = data.get("id")
    if not isinstance(key, str) or not key:
        raise CallRefused("data.id must name a row")
    return key


def _checked(table: Table, data: Mapping[str, Any]) -> Row:
    """Return the values, ready to be bound. Raises CallRefused for a wrong value or a column that is not the
    caller's."""
    values: Row = {}
    for name, value in data.items():
        column = table.by_name.get(name)
        if column is None:
            raise CallRefused(f"{table.name} has no column {name!r}")
        if column.made_by_device:
            raise CallRefused(f"{name} is made by the device")
        if not is_value(column, value):
            raise CallRefused(f"{name} has a wrong value")
        values[name] = int(value) if isinstance(value, bool) else value
    return values
