"""The documents for people name files that exist and link to pages that do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("*.md")])
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
_CODE = re.compile(r"`([\w./-]+)`")
_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def text_of(page: Path) -> str:
    return _FENCED.sub("", page.read_text("utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(page: Path) -> None:
    targets = [target for target in _LINK.findall(text_of(page)) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_in_code_spans_exist(page: Path) -> None:
    """Only spans that begin with a folder of the project are paths."""
    folders = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and path.name[0] != ".")
    paths = [span for span in _CODE.findall(text_of(page)) if span.startswith(folders)]
    assert [path for path in paths if not (ROOT / path).exists() and not (page.parent / path).exists()] == []


def test_functions_that_the_recipes_call_exist() -> None:
    called = set(re.findall(r"`@?([a-z_]\w+)\(", (ROOT / "CONTRIBUTING.md").read_text("utf-8")))
    code = "\n".join(
        path.read_text("utf-8") for app in ("adiuva", "agents", "chat") for path in (ROOT / app).rglob("*.py")
    )
    assert "assistant_tool" in called
    assert {name for name in called if not re.search(rf"\b{name}\b", code)} == set()


def test_the_map_names_all_our_commands() -> None:
    entry = re.search(r"^manage\.py .*\n(?: .*\n)*", (ROOT / "ARCHITECTURE.md").read_text("utf-8"), re.M)
    assert entry is not None
    apps = ("adiuva", "agents", "billing", "chat", "integrations", "memory")
    paths = [path for app in apps for path in (ROOT / app).rglob("management/commands/*.py")]
    commands = {path.stem for path in paths} - {"__init__"}
    assert "up" in commands
    assert {name for name in commands if not re.search(rf"\b{name}\b", entry[0])} == set()


def test_the_commands_that_the_readme_names_exist() -> None:
    """Its requests are those of docs/guide.md, whose examples tests/clients/test_guide.py runs."""
    readme = (ROOT / "README.md").read_text("utf-8")
    named = set(re.findall(r"(?:^|`|\s)make ([a-z]+)", readme))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert {"run", "test"} <= named <= targets
    commands = {path.stem for path in (ROOT / "adiuva").rglob("management/commands/*.py")}
    assert {"chat"} <= set(re.findall(r"manage\.py ([a-z_]+)", readme)) <= commands
    settings = set(re.findall(r"\b(ADIUVA_[A-Z_]+)=", readme))
    assert settings and all(f"{name}=" in (ROOT / ".env.example").read_text("utf-8") for name in settings)
    assert "curl" not in readme, "requests are shown in docs/guide.md, where they are run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_a_heading_lead_to_one(page: Path) -> None:
    missing = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text_of(page)):
        other = page.parent / target if target else page
        if "://" in target or other.suffix != ".md":
            continue
        headings = re.findall(r"^#+ (.+)$", text_of(other), re.M)
        if anchor not in {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings}:
            missing.append(f"{target}#{anchor}")
    assert missing == []
