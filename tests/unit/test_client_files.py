"""The headless device's guard of files, with real folders and links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adiuva.devices.client.file_access import MAX_FILE_BYTES, FoundFile, Listing, ReadableArea, resolve_grant
from adiuva.documents import Unreadable
from adiuva.documents.kinds import READABLE


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """`granted/` with two documents, and `granted-not/` beside it with a secret."""
    for name in ("granted/a.md", "granted/deep/b.TXT", "granted-not/secret.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")
    return tmp_path


def listed(
    home: Path, *paths: Path | str, grants: tuple[str, ...] = ("granted",), kinds: str = ""
) -> Listing:
    area = ReadableArea([resolve_grant(home / grant) for grant in grants], [str(path) for path in paths])
    return area.list_files(kinds.split(), READABLE)


def names(listing: Listing) -> list[str]:
    return [file.name for file in listing.files]


def reasons(listing: Listing) -> list[str]:
    return [problem["reason"] for problem in listing.problems]


def test_files_are_found_in_a_stable_order_under_the_path_that_the_agent_names(home: Path) -> None:
    listing = listed(home, home / "granted")
    assert [file.path for file in listing.files] == [f"{home}/granted/a.md", f"{home}/granted/deep/b.TXT"]
    assert listing.problems == []


def test_extensions_may_have_a_dot_and_any_case(home: Path) -> None:
    assert names(listed(home, home / "granted", kinds="txt")) == ["b.TXT"]
    assert names(listed(home, home / "granted", kinds=".MD .Txt")) == ["a.md", "b.TXT"]


@pytest.mark.parametrize(
    "path",
    [
        "granted-not",
        "granted/../granted-not",
        "granted-not/secret.md",
        "granted/deep/../../granted-not",
        "nowhere",
    ],
)
def test_what_is_not_granted_is_refused_and_said(home: Path, path: str) -> None:
    listing = listed(home, home / path)
    assert listing.files == []
    assert [problem["path"] for problem in listing.problems] == [str(home / path)]
    assert "granted" in reasons(listing)[0]


def test_a_path_that_is_relative_or_missing_is_said(home: Path) -> None:
    assert reasons(listed(home, "granted", "")) == ["it is not an absolute path"] * 2
    assert reasons(listed(home, home / "granted" / "gone")) == ["it is not there"]


def test_of_a_path_around_a_grant_only_the_grant_is_read(home: Path) -> None:
    listing = listed(home, home)
    assert [file.path for file in listing.files] == [f"{home}/granted/a.md", f"{home}/granted/deep/b.TXT"]


def test_a_grant_may_be_reached_by_a_link_and_keeps_its_name(home: Path) -> None:
    (home / "link").symlink_to(home / "granted")
    listing = listed(home, home / "link", grants=("link",))
    assert [file.path for file in listing.files] == [f"{home}/link/a.md", f"{home}/link/deep/b.TXT"]
    area = ReadableArea([resolve_grant(home / "link")], [str(home / "link")])
    assert area.read(listing.files[0]) == b"text of granted/a.md"


def test_a_grant_does_not_follow_when_its_link_is_turned(home: Path) -> None:
    (home / "link").symlink_to(home / "granted")
    grant = resolve_grant(home / "link")
    (home / "link").unlink()
    (home / "link").symlink_to(home / "granted-not")
    listing = ReadableArea([grant], [str(home / "link")]).list_files([], READABLE)
    assert listing.files == []
    assert "granted" in reasons(listing)[0]


def test_links_that_lead_out_are_refused_and_those_that_lead_in_count_once(home: Path) -> None:
    inside = home / "granted"
    (inside / "out.md").symlink_to(home / "granted-not" / "secret.md")
    (inside / "outdir").symlink_to(home / "granted-not")
    (inside / "in.md").symlink_to(inside / "a.md")
    (inside / "loop").symlink_to(inside)
    (inside / "broken.md").symlink_to(inside / "nothing")
    listing = listed(home, inside)
    assert names(listing) == ["a.md", "b.TXT"]
    assert {Path(problem["path"]).name: problem["reason"] for problem in listing.problems} == {
        "out.md": "it is a link that leads out of the folders this agent may read",
        "outdir": "it is a link that leads out of the folders this agent may read",
        "broken.md": "it is a link that leads nowhere",
    }


def test_a_link_into_another_grant_that_the_agent_was_not_given_leads_out(home: Path) -> None:
    (home / "granted" / "sneaky.md").symlink_to(home / "granted-not" / "secret.md")
    listing = listed(home, home / "granted", grants=("granted", "granted-not"))
    assert names(listing) == ["a.md", "b.TXT"]
    assert len(listing.problems) == 1


def test_overlapping_paths_give_each_file_once(home: Path) -> None:
    assert names(listed(home, home / "granted" / "deep", home / "granted")) == ["b.TXT", "a.md"]


def test_hidden_files_and_folders_of_tools_are_passed_over(home: Path) -> None:
    for name in (".git/config.md", ".hidden.md", "node_modules/readme.md", "CVS/x.md"):
        path = home / "granted" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    listing = listed(home, home / "granted")
    assert names(listing) == ["a.md", "b.TXT"]
    assert listing.problems == []


def test_a_granted_folder_may_itself_be_below_a_hidden_one(home: Path) -> None:
    (home / ".state" / "documents").mkdir(parents=True)
    (home / ".state" / "documents" / "c.md").write_text("c")
    assert names(listed(home, home / ".state" / "documents", grants=(".state",))) == ["c.md"]


def test_what_cannot_be_read_yet_is_said_if_it_was_asked_for(home: Path) -> None:
    (home / "granted" / "scan.psd").write_bytes(b"8BPS")
    with (home / "granted" / "huge.txt").open("wb") as huge:
        huge.truncate(MAX_FILE_BYTES + 1)
    os.mkfifo(home / "granted" / "pipe.md")
    assert names(listed(home, home / "granted", kinds="")) == ["a.md", "b.TXT"]
    assert listed(home, home / "granted", kinds="").passed_over == {".psd": 1}
    listing = listed(home, home / "granted", kinds="psd txt md")
    assert not listing.passed_over
    assert {Path(problem["path"]).name: problem["reason"] for problem in listing.problems} == {
        "scan.psd": "this kind of file cannot be read yet",
        "huge.txt": "it is larger than 20 MiB (20.0 MiB)",
        "pipe.md": "it is not a regular file",
    }


def test_a_name_that_is_no_unicode_is_said_and_not_sent(home: Path) -> None:
    Path(os.fsdecode(os.fsencode(home / "granted") + b"/\xff\xfe.md")).write_text("x")
    listing = listed(home, home / "granted")
    assert names(listing) == ["a.md", "b.TXT"]
    assert reasons(listing) == ["its name is not valid Unicode"]
    listing.problems[0]["path"].encode()


def test_a_file_that_became_a_link_after_the_walk_is_not_read(home: Path) -> None:
    area = ReadableArea([resolve_grant(home / "granted")], [str(home / "granted")])
    first, second = area.list_files([], READABLE).files
    (home / "granted" / "a.md").unlink()
    (home / "granted" / "a.md").symlink_to(home / "granted-not" / "secret.md")
    (home / "granted-not" / "b.TXT").write_text("secret too")
    (home / "granted" / "deep").rename(home / "granted" / "was-deep")
    (home / "granted" / "deep").symlink_to(home / "granted-not")
    for found in (first, second):
        with pytest.raises(Unreadable, match="granted"):
            area.read(found)
        with pytest.raises(Unreadable, match="granted"):
            area.sha256(found)


def test_a_file_that_is_gone_or_became_a_pipe_is_said(home: Path) -> None:
    area = ReadableArea([resolve_grant(home / "granted")], [str(home / "granted")])
    os.mkfifo(home / "granted" / "pipe.md")
    with pytest.raises(Unreadable, match="not a regular file"):
        area.read(FoundFile(f"{home}/granted/pipe.md", 0, 0))
    with pytest.raises(Unreadable, match="not there"):
        area.read(FoundFile(f"{home}/granted/gone.md", 0, 0))


def test_nothing_is_read_without_a_grant(home: Path) -> None:
    assert listed(home, home / "granted", grants=()).files == []
