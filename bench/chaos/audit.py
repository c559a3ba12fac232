"""Compares what the devices hold with what they should hold, and reads the states of runs and records."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from bench.chaos.documents import Agent

_LIVE: Final = ("queued", "waiting_device", "awaiting_reauth", "awaiting_budget", "running")


@dataclass
class Findings:
    expected: int = 0
    lost: int = 0
    duplicates: int = 0
    unexpected: int = 0  # rows that come from no document
    stuck_runs: int = 0
    stuck_records: int = 0  # not yet answered by a device
    uncertain: int = 0
    runs: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Nothing lost, duplicated, unexpected, stuck or uncertain."""
        return not (
            self.lost
            or self.duplicates
            or self.unexpected
            or self.stuck_runs
            or self.stuck_records
            or self.uncertain
        )


def audit_devices(agents: Iterable[Agent], workspaces: Path, database: str) -> Findings:
    """Audit all devices and the database. The devices' files may be in use."""
    found = Findings()
    by_device: dict[int, Counter[tuple[str, str]]] = {}
    for agent in agents:
        expected = by_device.setdefault(agent.device, Counter())
        expected.update((table, title) for title, table in agent.expected.items())
    for device, expected in by_device.items():
        held = _rows(workspaces / str(device) / "data.sqlite3")
        found.expected += expected.total()
        found.lost += (missing := expected - held).total()
        over = held - expected
        found.duplicates += (
            duplicates := Counter({row: n for row, n in over.items() if row in expected})
        ).total()
        found.unexpected += over.total() - duplicates.total()
        for what, rows in (("lost", missing), ("duplicate", duplicates)):
            found.examples += [f"{what}: {table} {title!r}" for table, title in rows]
    with psycopg.connect(database) as connection:
        _read_database(connection, found)
    return found


def _rows(file: Path) -> Counter[tuple[str, str]]:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
        return Counter(
            (table, row[0])
            for table in ("tasks", "notes")
            for row in store.execute(f'SELECT title FROM "{table}"')
        )


def _read_database(connection: psycopg.Connection[Any], found: Findings) -> None:
    states = connection.execute("SELECT state, count(*) FROM agents_run GROUP BY state")
    found.runs = Counter(dict(states.fetchall()))
    found.stuck_runs = sum(found.runs[state] for state in _LIVE)
    attempts = connection.execute("SELECT attempt, count(*) FROM agents_run GROUP BY attempt")
    found.attempts = Counter(dict(attempts.fetchall()))
    records = connection.execute("SELECT state, count(*) FROM devices_outboxrecord GROUP BY state")
    outbox = Counter(dict(records.fetchall()))
    found.stuck_records = outbox["waiting"] + outbox["sent"]
    found.uncertain = outbox["uncertain"]


def count_failure_codes(database: str) -> Counter[str]:
    """Counts the codes with which unsuccessful runs ended."""
    query = """
        SELECT run.state || ' ' || event.code
        FROM agents_run AS run JOIN agents_runevent AS event ON event.run_id = run.id
        WHERE event.kind = 'finished' AND run.state <> 'success'
    """
    with psycopg.connect(database) as connection:
        return Counter(row[0] for row in connection.execute(query))


def count_logged_errors(folder: Path) -> Counter[str]:
    """Counts the error events in the processes' logs, by process and event name."""
    found: Counter[str] = Counter()
    for log in folder.glob("*.log"):
        for line in log.read_text("utf-8", "replace").splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if isinstance(said, dict) and said.get("level") in ("error", "critical"):
                found[f"{log.stem.partition('-')[0]}: {str(said.get('event'))[:80]}"] += 1
    return found
