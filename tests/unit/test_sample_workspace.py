"""The demo's documents make sense on whatever day they are written."""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import date, timedelta
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from adiuva.documents.reading import read_document
from adiuva.embedded import sample_workspace
from adiuva.offline_llm.document_rules import PromptDocument, find_records

DAYS = [
    *(date(2026, 11, 23) + timedelta(days=number) for number in range(7)),  # every weekday
    date(2027, 2, 1),  # a Monday and the first of a short month
    date(2027, 2, 28),
    date(2028, 2, 29),
    date(2027, 1, 31),
    date(2027, 5, 31),
    date(2026, 12, 31),
    date(2027, 1, 1),
]


def _due_dates(folder: Path, today: date) -> list[date]:
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        text = read_document(path.name, path.read_bytes()).text
        for _, data in find_records(PromptDocument(path.name, text, today=today), {"tasks"}):
            if due := data.get("dueDate"):
                found.append(date.fromisoformat(str(due)[:10]))
    return found


@pytest.mark.parametrize("today", DAYS, ids=str)
def test_tasks_are_overdue_due_today_this_week_and_next_month(today: date, tmp_path: Path) -> None:
    sample_workspace.write(tmp_path, today)
    due = _due_dates(tmp_path, today)
    sunday = today + timedelta(days=6 - today.weekday())
    next_month = today.replace(day=1) + timedelta(days=monthrange(today.year, today.month)[1])
    assert sum(day < today for day in due) >= 5
    assert today in due
    assert sum(today <= day <= sunday for day in due) >= 1
    assert any((day.year, day.month) == (next_month.year, next_month.month) for day in due)
    assert len(due) == 46  # the same on every day


@pytest.mark.parametrize("today", DAYS[6:], ids=str)
def test_the_files_have_no_placeholder_left_and_mails_a_true_date(today: date, tmp_path: Path) -> None:
    sample_workspace.write(tmp_path, today)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 15
    for path in files:
        assert not re.search(rb"\{\{|\}\}", path.read_bytes()), path
    for path in tmp_path.rglob("*.eml"):
        mail = message_from_bytes(path.read_bytes(), policy=policy.default)
        sent = mail["Date"].datetime
        assert mail["Date"].startswith(f"{sent:%a, %d %b %Y}") and sent.weekday() < 5
        assert sent.date() < today and f"<{sent:%Y%m%d}-" in mail["Message-ID"]


def test_no_date_of_the_calendar_is_written_into_the_sample() -> None:
    for path in sample_workspace.FOLDER.rglob("*"):
        if path.is_file():
            assert not re.search(r"\b(19|20)\d\d-\d\d|\b20[2-9]\d\b", path.read_text("utf-8")), path


def test_days_across_months_leap_days_and_years_are_counted_from_the_monday() -> None:
    assert sample_workspace.fill_dates("{{+0}} {{+6}} {{-7 %d %B %Y}}", date(2028, 3, 5)) == (
        "2028-02-28 2028-03-05 21 February 2028"
    )
    assert sample_workspace.fill_dates("{{+4}} {{-1}}", date(2026, 12, 31)) == "2027-01-01 2026-12-27"
    assert sample_workspace.fill_dates("p { x } {{ y }}", date(2026, 12, 31)) == "p { x } {{ y }}"
