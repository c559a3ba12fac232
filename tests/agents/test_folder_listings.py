"""An unchanged folder costs a few statements, however many files it holds."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from agents.claimed_runs import ClaimedRun
from agents.extraction import SourceDocument
from agents.folder_listings import ListedFile, Listing
from tests.agents.factories import commit_document

FILES = 40


def listed(claimed: ClaimedRun, number: int, *, moved: bool = False) -> ListedFile:
    path, content = f"/{'new' if moved else 'old'}/{number}.md", f"{number}".encode()
    return ListedFile(path, claimed.source_key(path), content, claimed.content_key(content))


@pytest.fixture
def folder(claimed: ClaimedRun) -> list[ListedFile]:
    """A folder all of which was read."""
    files = [listed(claimed, number) for number in range(FILES)]
    for file in files:
        commit_document(claimed, SourceDocument(file.path, file.path, "text", file.key, file.content_hash))
    return files


def test_an_unchanged_folder_costs_a_few_statements(claimed: ClaimedRun, folder: list[ListedFile]) -> None:
    listing = Listing(claimed)
    with CaptureQueriesContext(connection) as queries:
        found = listing.compare(folder, last=True)
        entries = listing.finish()
    assert (found.unchanged, found.due, entries) == (FILES, [], [])
    assert sum("SAVEPOINT" not in query["sql"] for query in queries) <= 5


def test_files_are_told_apart_only_once_the_whole_folder_is_listed(
    claimed: ClaimedRun, folder: list[ListedFile]
) -> None:
    moved = [listed(claimed, number, moved=True) for number in range(10)]
    listing = Listing(claimed)
    assert listing.compare(moved, last=False).due == []
    assert listing.undecided == 10
    # Five of them are copies, because their old paths turn up after all.
    found = listing.compare(folder[5:], last=True)
    assert (found.due, found.unchanged) == ([], FILES - 5 + 10)
    codes = [entry.code for entry in [*found.entries, *listing.finish()]]
    assert codes == ["source_renamed"] * 5 + ["source_copied"] * 5


def test_a_folder_whose_list_has_no_end_decides_nothing(
    claimed: ClaimedRun, folder: list[ListedFile]
) -> None:
    listing = Listing(claimed)
    changed = ListedFile(folder[0].path, folder[0].key, b"other", claimed.content_key(b"other"))
    assert listing.compare([changed, *folder[1:]], last=False).due == []
    assert listing.undecided == 1
