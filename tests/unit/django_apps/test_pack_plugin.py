"""`manage.py pack_plugin`: our examples pass, the same files make the same package, a bad plugin is told why."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from billing.marketplace.checks import check_package

EXAMPLES = Path(__file__).parents[3] / "examples" / "plugins"


def pack(folder: Path, output: Path) -> str:
    said = io.StringIO()
    call_command("pack_plugin", str(folder), "--output", str(output), stdout=said)
    return said.getvalue()


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLES / "invoices-to-pay", tmp_path / "plugin"))


def change(folder: Path, **values: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()))
def test_each_example_passes_and_always_makes_the_same_package(name: str, tmp_path: Path) -> None:
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    said = pack(EXAMPLES / name, first)
    assert pack(EXAMPLES / name, second).split("SHA-256")[1] == said.split("SHA-256")[1]
    assert first.read_bytes() == second.read_bytes()
    report = check_package(io.BytesIO(first.read_bytes()))
    assert report.manifest is not None
    assert (report.manifest.id, report.findings) == (name, [])


def test_a_finding_is_told_with_its_place_and_nothing_is_written(template: Path, tmp_path: Path) -> None:
    (template / "README.md").write_text("one\ntwo\ncurl https://example.com/x | sh\n")
    said = io.StringIO()
    with pytest.raises(CommandError, match="would refuse"):
        call_command("pack_plugin", str(template), "--output", str(tmp_path / "a.zip"), stdout=said)
    assert "README.md:3: blocks: it tells people to run commands from the internet" in said.getvalue()
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({"data_types": ["secrets"]}, "is not one of tasks"),
        ({"schedule_cron": "0 25 * * *"}, "Not a schedule"),
        ({"file_extensions": ["*"]}, "is not a file extension"),
        ({"filters": {"date_range": {"from": "never"}}}, "date"),
        ({"filters": {"senders": "x"}}, "senders: "),
    ],
)
def test_a_template_is_checked_as_an_agents_form_is(
    template: Path, tmp_path: Path, part: dict[str, object], problem: str
) -> None:
    agent = json.loads((template / "manifest.json").read_text())["agent"]
    change(template, agent={**agent, **part})
    said = io.StringIO()
    with pytest.raises(CommandError):
        call_command("pack_plugin", str(template), "--output", str(tmp_path / "a.zip"), stdout=said)
    assert problem in said.getvalue()


def test_a_bad_manifest_is_told_part_by_part(template: Path, tmp_path: Path) -> None:
    change(template, version="one", kind="virus")
    with pytest.raises(CommandError) as refused:
        pack(template, tmp_path / "a.zip")
    assert "manifest.json: version: a version is three numbers" in str(refused.value)
    assert "manifest.json: kind: " in str(refused.value)
    change(template, author="me")
    path = template / "manifest.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "license"})
    )
    with pytest.raises(CommandError) as refused:
        pack(template, tmp_path / "a.zip")
    assert "manifest.json: license: it is missing" in str(refused.value)
    assert "manifest.json: author: there is no such part" in str(refused.value)


def test_a_link_is_not_followed_and_hidden_files_are_named(template: Path, tmp_path: Path) -> None:
    """What a link leads to may be anything of the developer's machine."""
    (template / ".env").write_text("KEY=1\n")
    assert ".env: left out" in pack(template, tmp_path / "a.zip")
    (tmp_path / "private.md").write_text("mine\n")
    (template / "notes.md").symlink_to(tmp_path / "private.md")
    with pytest.raises(CommandError, match=r"notes\.md is a link"):
        pack(template, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_a_folder_without_a_manifest_and_a_key_that_is_there_twice_are_told(
    template: Path, tmp_path: Path
) -> None:
    path = template / "manifest.json"
    path.write_text(path.read_text().rstrip()[:-1] + ', "name": "Another"}')
    with pytest.raises(CommandError, match="it has a key twice"):
        pack(template, tmp_path / "a.zip")
    path.unlink()
    with pytest.raises(CommandError, match=r"there is no manifest\.json"):
        pack(template, tmp_path / "a.zip")
