"""Panels of the admin's start page: whether the server is well, who uses it, what fails.

Each statement reads an index from its newest end, and at most MAX_ROWS rows, so the page costs the same however large
the tables are. Figures that do not cover all rows say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from django.conf import settings
from django.db import connection
from django.utils import timezone

from adiuva import health
from adiuva.accounts.admin_base import PeriodFilter
from adiuva.accounts.models import Mail, User
from adiuva.devices.models import Device, OutboxRecord
from adiuva.staff.panels import Cell, Panel, age, at_least, list_url, may_view
from agents.models import Agent, Run
from billing import usage_reports
from billing.models import Use
from chat.models import Turn

MAX_ROWS: Final = 100_000
_MAX_COUNTED: Final = 10_000  # the size of a larger table is estimated
_MAX_CODES: Final = 15
_BAD_STATES: Final = {"error", "timeout", "partial", "limit"}


def panels(user: Any) -> Iterator[Panel]:
    """Return the panels that this member of staff may see."""
    yield _health()
    if may_view(user, Run):
        yield _queues()
        yield _runs()
        yield _run_codes()
    if may_view(user, Turn):
        yield _turns()
    if may_view(user, Device):
        yield _activity()
    if may_view(user, Turn):
        yield _tokens()
    if may_view(user, Use):
        yield model_costs()
    if may_view(user, User):
        yield _sizes()


def _rows(statement: str, **values: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, {"most": MAX_ROWS, **values})
        return list(cursor.fetchall())


def _note(rows: list[Any], column: int) -> str:
    """Say that not all rows were counted."""
    return f"Of the newest {MAX_ROWS:,}." if sum(row[column] for row in rows) >= MAX_ROWS else ""


def _health() -> Panel:
    rows = []
    for name, check in health.run_checks().items():
        facts = [f"{check[key]:g} {label}" for key, label in _FACTS.items() if key in check]
        words = ", ".join(facts) or f"{check['ms']:g} ms"
        rows.append([name, "ok" if check["ok"] else Cell(f"fails: {check['reason']}", bad=True), words])
    return Panel("Health", ("What", "How it is", ""), rows)


_FACTS: Final = {"queued": "queued", "oldest_queued_s": "s the oldest"}


_LIVE_RUNS: Final = """
SELECT state, count(*), min(enqueued_at) FROM (
    SELECT state, enqueued_at FROM agents_run
    WHERE state IN ('queued', 'waiting_device', 'awaiting_reauth', 'awaiting_budget', 'running') LIMIT %(most)s
) AS live GROUP BY state ORDER BY state
"""
_OUTBOX: Final = """
SELECT state, count(*), min(created_at) FROM (
    SELECT state, created_at FROM devices_outboxrecord WHERE state IN ('waiting', 'sent')
    ORDER BY created_at LIMIT %(most)s
) AS waiting GROUP BY state ORDER BY state
"""
_MAILS: Final = """
SELECT count(*), min(created_at), count(*) FILTER (WHERE attempts > 0) FROM (
    SELECT created_at, attempts FROM accounts_mail ORDER BY not_before LIMIT %(most)s
) AS waiting
"""


def _queues() -> Panel:
    rows = [
        [f"runs {Run.State(state).label.lower()}", Cell(at_least(count, MAX_ROWS), list_url(Run, state__exact=state)),
         age(oldest)]
        for state, count, oldest in _rows(_LIVE_RUNS)
    ]  # fmt: skip
    rows += [
        [
            f"records for devices, {OutboxRecord.State(state).label.lower()}",
            at_least(count, MAX_ROWS),
            age(oldest),
        ]
        for state, count, oldest in _rows(_OUTBOX)
    ]
    ((count, oldest, failed),) = _rows(_MAILS)
    if count:
        tried = Cell(f"{at_least(count, MAX_ROWS)}, {failed} tried in vain so far", bad=True)
        rows.append(
            [Mail._meta.verbose_name_plural, tried if failed else at_least(count, MAX_ROWS), age(oldest)]
        )
    return Panel("What waits", ("What", "How many", "The oldest for"), rows, empty="Nothing waits.")


_RUNS: Final = """
SELECT state, dry_run, count(*), count(DISTINCT user_id), sum(items_created), sum(model_calls) FROM (
    SELECT state, dry_run, user_id, items_created, model_calls FROM agents_run
    WHERE created_at > now() - interval '1 day' ORDER BY created_at DESC LIMIT %(most)s
) AS newest GROUP BY state, dry_run ORDER BY dry_run, count(*) DESC
"""


def _runs() -> Panel:
    found = _rows(_RUNS)
    rows = [
        [
            Cell(f"{state}{', dry run' if dry else ''}", list_url(Run, state__exact=state, created_at__within="day"),
                 bad=state in _BAD_STATES),
            f"{count:,}", f"{users:,}", f"{records:,}", f"{calls:,}",
        ]
        for state, dry, count, users, records, calls in found
    ]  # fmt: skip
    head = ("Outcome", "Runs", "Users", "Records", "Model calls")
    return Panel(
        "Runs of 24 hours", head, rows, url=list_url(Run, created_at__within="day"), note=_note(found, 2)
    )


# As in the index on failures, notes do not count.
_RUN_CODES: Final = """
SELECT code, kind, count(*), count(DISTINCT run_id) FROM (
    SELECT code, kind, run_id, is_over FROM agents_runevent
    WHERE code <> '' AND kind <> 'note' AND at > now() - interval '1 day' ORDER BY at DESC LIMIT %(most)s
) AS newest
WHERE NOT is_over AND kind <> 'waiting' AND code NOT IN ('completed', 'empty', 'completed_with_failures')
GROUP BY code, kind ORDER BY count(*) DESC, code LIMIT %(codes)s
"""


def _run_codes() -> Panel:
    found = _rows(_RUN_CODES, codes=_MAX_CODES)
    rows = [
        [Cell(code, list_url(Run, q=code), bad=True), kind.replace("_", " "), f"{count:,}", f"{runs:,}"]
        for code, kind, count, runs in found
    ]
    return Panel(
        "What fails in runs, 24 hours", ("Code", "What", "Times", "Runs"), rows, empty="Nothing failed."
    )


_TURNS: Final = """
SELECT state, code, count(*), count(DISTINCT user_id) FROM (
    SELECT state, code, user_id FROM chat_turn
    WHERE started_at > now() - interval '1 day' ORDER BY started_at DESC LIMIT %(most)s
) AS newest GROUP BY state, code ORDER BY count(*) DESC, state, code LIMIT %(codes)s
"""


def _turns() -> Panel:
    found = _rows(_TURNS, codes=_MAX_CODES)
    day = {"started_at__within": "day"}
    rows = [
        [
            Cell(Turn.State(state).label.lower(), list_url(Turn, state__exact=state, **day), bad=state in _BAD_STATES),
            Cell(code, list_url(Turn, q=code, **day)) if code else "", f"{count:,}", f"{users:,}",
        ]
        for state, code, count, users in found
    ]  # fmt: skip
    head = ("Outcome", "Code", "Turns", "Users")
    return Panel("Chat turns of 24 hours", head, rows, url=list_url(Turn, **day), note=_note(found, 2))


_ACTIVITY: Final = """
SELECT count(*) FILTER (WHERE online), count(DISTINCT user_id) FILTER (WHERE online),
    count(DISTINCT user_id) FILTER (WHERE last_seen > now() - interval '1 day'),
    count(DISTINCT user_id) FILTER (WHERE last_seen > now() - interval '7 days'),
    count(DISTINCT user_id), count(*)
FROM (
    (SELECT user_id, true AS online, now() AS last_seen FROM devices_device
    WHERE process_id IN (SELECT id FROM devices_process WHERE lease_until > now()) LIMIT %(most)s)
    UNION ALL
    (SELECT user_id, false, last_seen FROM devices_device AS device
    WHERE last_seen > now() - interval '30 days'
        AND NOT EXISTS (SELECT FROM devices_process WHERE id = process_id AND lease_until > now())
    ORDER BY last_seen DESC LIMIT %(most)s)
    LIMIT %(most)s
) AS newest
"""
_NEW_ACCOUNTS: Final = """
SELECT count(*) FILTER (WHERE created_at > now() - interval '1 day'),
    count(*) FILTER (WHERE created_at > now() - interval '7 days'), count(*)
FROM (
    SELECT created_at FROM accounts_user
    WHERE created_at > now() - interval '30 days' ORDER BY created_at DESC, id DESC LIMIT %(most)s
) AS newest
"""


def _activity() -> Panel:
    ((online, owners, day, week, month, seen),) = _rows(_ACTIVITY)
    (new,) = _rows(_NEW_ACCOUNTS)
    now = Cell(f"{online:,} of {owners:,} users", list_url(Device, online="yes"))
    rows: list[list[Any]] = [
        ["devices online now", now, "", ""],
        [
            "active users: a device of theirs was connected",
            f"{day:,}",
            f"{week:,}",
            at_least(month, MAX_ROWS),
        ],
        ["new accounts", *(at_least(count, MAX_ROWS) for count in new)],
    ]
    note = f"Of the {MAX_ROWS:,} devices seen last." if seen >= MAX_ROWS else ""
    return Panel("Who uses it", ("", "24 hours", "7 days", "30 days"), rows, note=note)


_TOKENS: Final = """
SELECT day, count(*), count(DISTINCT user_id), sum(model_calls), sum(input_tokens), sum(output_tokens) FROM (
    SELECT (started_at AT TIME ZONE 'UTC')::date AS day, user_id, model_calls, input_tokens, output_tokens
    FROM chat_turn WHERE started_at > now() - interval '7 days' ORDER BY started_at DESC LIMIT %(most)s
) AS newest GROUP BY day ORDER BY day DESC
"""


def _tokens() -> Panel:
    found = _rows(_TOKENS)
    rows: list[list[Any]] = [[str(day), *(f"{figure:,}" for figure in figures)] for day, *figures in found]
    head = ("Day (UTC)", "Turns", "Users", "Model calls", "Tokens in", "Tokens out")
    return Panel("Tokens of chats a day", head, rows, note=_note(found, 1))


def model_costs(account: User | None = None) -> Panel:
    """Show the requests to models and their cost, by day and model, for 7 days."""
    since = (timezone.now() - PeriodFilter.PERIODS["week"]).date()
    found = usage_reports.by_day_and_model(since, user_id=account.pk if account else None, most=MAX_ROWS)
    rows: list[list[Any]] = [
        [str(day), model, *(f"{figure:,}" for figure in figures), f"{cost / 1_000_000:,.4f}"]
        for day, model, *figures, cost in found
    ]
    head = (
        "Day (UTC)",
        "Model",
        "Calls",
        "Tokens in",
        "of them cached",
        "Tokens out",
        settings.BUDGET_CURRENCY,
    )
    url = list_url(Use, q=account.pk) if account else list_url(Use)
    return Panel("What models cost, 7 days", head, rows, url=url, empty="No model was asked.")


_SIZES: Final = """
SELECT relation::regclass::text, reltuples::bigint FROM pg_class, unnest(%(tables)s::text[]) AS wanted (relation)
WHERE oid = relation::regclass
"""
_COUNT: Final = "(SELECT count(*) FROM (SELECT FROM {} LIMIT %(counted)s) AS first)"


def _sizes() -> Panel:
    """Show how large the tables are: it counts the first rows, and takes the planner's estimate beyond those."""
    models = {model._meta.db_table: model for model in (User, Device, Agent, Run, Turn, OutboxRecord)}
    estimates = dict(_rows(_SIZES, tables=list(models)))
    counts = ", ".join(_COUNT.format(connection.ops.quote_name(table)) for table in models)
    (counted,) = _rows(f"SELECT {counts}", counted=_MAX_COUNTED)
    rows = []
    for (table, model), count in zip(models.items(), counted, strict=True):
        about = f"about {max(estimates[table], count):,}" if count >= _MAX_COUNTED else f"{count:,}"
        rows.append([str(model._meta.verbose_name_plural), about])
    return Panel("How much there is", ("What", "Rows"), rows)
