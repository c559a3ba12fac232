"""Long documents are cut between items, no word is lost, and each part says what document it is from."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adiuva.documents import Document, Head, Part, cut_into_parts
from adiuva.documents.document import head_of_text, iso_date
from tests.sampling import fewer

WORDS = st.text(alphabet="abc é漢.", min_size=1, max_size=60).map(lambda said: said.replace("\n", " "))
LINES = st.one_of(
    WORDS.map(lambda said: f"- [ ] {said}"),
    WORDS.map(lambda said: f"  - {said}"),
    WORDS.map(lambda said: f"12. {said}\n    and {said}"),
    WORDS.map(lambda said: f"## {said}"),
    WORDS.map(lambda said: f"| {said} | 1 |"),
    WORDS.map(lambda said: f"```\n{said}\n```"),
    WORDS,
    st.just(""),
)


def cut(text: str, most: int = 200, **about: str) -> list[Part]:
    return cut_into_parts(text, most_chars=most, head=Head(**about))


@given(st.lists(LINES, max_size=60).map("\n".join), st.integers(20, 400))
@settings(max_examples=fewer(100), deadline=None)
def test_the_parts_joined_are_the_text(text: str, most: int) -> None:
    parts = cut(text, most)
    if not text.strip():
        assert parts == []
        return
    assert "".join(part.text for part in parts) == text
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert all(part.count == len(parts) and text.startswith(part.text, part.start) for part in parts)
    assert all(len(part.text.strip()) <= most and part.text.strip() for part in parts)


@given(st.text(max_size=3_000), st.integers(1, 300), st.sampled_from(["", "text/csv"]))
@settings(max_examples=fewer(80), deadline=None)
def test_any_text_is_cut_without_loss(text: str, most: int, kind: str) -> None:
    parts = cut_into_parts(text, most_chars=most, kind=kind)
    assert "".join(part.text for part in parts) == (text if text.strip() else "")


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(5, 90), st.booleans()), min_size=1, max_size=60),
    st.integers(120, 400),
)
@settings(max_examples=fewer(80), deadline=None)
def test_no_item_is_cut_inside(items: list[tuple[int, int, bool]], most: int) -> None:
    lines = [
        f"{'  ' * depth}- {'x' * size}{number}"
        + ("\n" + "  " * depth + f"  more {number}" if wrapped else "")
        for number, (depth, size, wrapped) in enumerate(items)
    ]
    parts = cut("\n".join(lines), most)
    for line in lines:
        assert sum(line in part.text for part in parts) >= 1


def test_headings_above_and_the_document_s_head_are_in_every_part() -> None:
    text = "# Meeting 2026-01-05\n\n## Actions\n\n" + "\n".join(
        f"- [ ] item {number}" for number in range(60)
    )
    parts = cut(text, 300, title="Meeting 2026-01-05", date="2026-01-05", sender="Sam")
    assert len(parts) > 2
    assert "Title of" not in parts[0].context
    for part in parts[1:]:
        assert "Title of the document: Meeting 2026-01-05" in part.context
        assert "Date of the document: 2026-01-05" in part.context
        assert "Sender of the document: Sam" in part.context
        assert "Above this part: ## Actions" in part.context


def test_a_heading_stays_with_what_it_is_above() -> None:
    text = "## One\n" + "first\n\n" * 20 + "## Two\n" + "second\n\n" * 20
    for part in cut(text, 160):
        assert not part.text.rstrip().endswith(("## One", "## Two"))
    parts = cut(text, 160)
    assert any(part.text.startswith("## Two") for part in parts)
    assert "## One" not in next(part for part in parts if "## Two" in part.text).context


def test_an_item_below_another_says_which() -> None:
    text = "- Website\n" + "\n".join(f"  - [ ] page {number} of the site" for number in range(20))
    assert all("Above this part: - Website" in part.context for part in cut(text)[1:])


@pytest.mark.parametrize(
    ("head", "kind"),
    [("| What | Due |\n|---|---|", ""), ("What | Due", ""), ("What,Due", "text/csv")],
)
def test_a_table_s_head_row_is_in_every_part(head: str, kind: str) -> None:
    row = "layout {0},2026-12-01" if kind else "| layout {0} | 2026-12-01 |"
    if head.startswith("What |"):
        row = "layout {0} | 2026-12-01"
    text = head + "\n" + "\n".join(row.format(number) for number in range(40))
    parts = cut_into_parts(text, most_chars=200, kind=kind)
    first = head.split("\n")[0]
    assert len(parts) > 2
    assert all(f"Columns of the table: {first}" in part.context for part in parts[1:])


def test_a_quoted_value_of_a_table_is_not_cut_at_its_line_ends() -> None:
    rows = [f'{number},"first line\nsecond line {number}"' for number in range(40)]
    parts = cut_into_parts("\n".join(rows), most_chars=100, kind="text/csv")
    assert all(any(row in part.text for part in parts) for row in rows)


def test_an_item_longer_than_a_part_is_cut_after_a_sentence() -> None:
    text = "- " + "This is one sentence of many. " * 30
    parts = cut(text, 100)
    assert all(part.text.rstrip().endswith(".") for part in parts)


def test_cutting_takes_time_in_proportion() -> None:
    for line in ("- x\n", "# x\n", "| a | b |\n", "x | y\n", "```\n", "\n", "a", '"\n'):
        cut_into_parts(line * 20_000, most_chars=8_000, kind="text/csv" if line == '"\n' else "")


@pytest.mark.parametrize(
    ("text", "name", "title", "date"),
    [
        ("# Meeting 2026-01-05\n\nx", "", "Meeting 2026-01-05", "2026-01-05"),
        ("---\ntitle: Kick-off\ndate: 2026-03-04\n---\nx", "", "Kick-off", "2026-03-04"),
        ("Datum: 5.1.2026\nx", "", "", "2026-01-05"),
        ("x", "/n/2026-01-05 Call.md", "", "2026-01-05"),
        ("x", "C:\\n\\20260105_call.txt", "", "2026-01-05"),
        ("x", "2026-13-45.md", "", ""),
        ("x 2026-01-05", "", "", ""),
        ("**Date:** Mon, 05 Jan 2026 09:00:00 +0100", "", "", "2026-01-05T09:00:00+01:00"),
    ],
)
def test_a_note_s_title_and_date_are_found(text: str, name: str, title: str, date: str) -> None:
    head = head_of_text(text, name)
    assert (head.title, head.date) == (title, date)


@given(st.text(max_size=80))
def test_no_date_raises(said: str) -> None:
    iso_date(said)
    head_of_text(f"---\ndate: {said}\n---\n{said}", said)


def test_a_document_travels_whole() -> None:
    head = Head("Offer", "2026-01-05", "Sam <s@x.example>", "me@x.example", "1@x.example")
    document = Document("x", "message/rfc822", head, problems=("a part is encrypted",))
    assert Document.from_wire("x", document.metadata()) == document


@pytest.mark.parametrize(
    "metadata", [{}, {"title": 1, "problems": "x", "type": None}, {"problems": [None, 3]}]
)
def test_whatever_a_client_says_of_a_document_is_taken_or_left(metadata: dict[str, object]) -> None:
    assert Document.from_wire("x", metadata) == Document("x")
