"""Files of every kind through a real run: device, worker and a scripted model, each a process or a server of its own.

`python -m bench.documents`: 300 files in twelve languages, half of them damaged, in one run. Each is read, or listed
with its reason; the share of its words that the model was shown, by kind. The CPU time of plain files.

`python -m bench.documents FOLDER`: of a folder with a README.md. The rows of its tables begin with names of files or
folders, and end with what is right. Prints that beside what the model was shown and what arrived.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from adiuva.documents import Unreadable
from adiuva.documents.reading import read_document
from adiuva.offline_llm.messages import delimited_text
from bench.agents_run import UserWithDevice
from bench.harness import bench_servers, record, show
from tests.fakes.provider import Provider, Request
from tests.unit.documents.sample_files import file_name, sample_files, share_of_words

_FILES: Final = 300
_SEED: Final = 20_261_128
_ROUNDS: Final = 200
_AT_ONCE: Final = 8
_NAMED: Final = re.compile(r"`([^`]+)`")
_DOCUMENT: Final = re.compile(r"^Document: (.*)$", re.MULTILINE)
_ITEM: Final = re.compile(
    r"^(?!>)[-*\d.\[\] ]*(?:\w+: )?(?:TODO:|\[ \])\s*(.+?)(?: by (\d{4}-\d\d-\d\d))?[ \t]*$",
    re.MULTILINE,
)


@dataclass
class Seen:
    """One run. By file: what the model was shown, part by part, and what the journal says of it."""

    seconds: float
    state: str
    errors: list[str]
    passed_over: dict[str, int]
    shown: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    said: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    failed: set[str] = field(default_factory=set)
    arrived: list[str] = field(default_factory=list)


def _shown(request: Request) -> str:
    """What a request says of a document: its name, its head, and the text of one part."""
    return delimited_text(str(request.body["messages"][1]["content"]), "document")


def tasks_of_items(request: Request) -> dict[str, Any]:
    """A model that makes a task of each open item of a document, and of nothing that is quoted or struck out."""
    found = []
    for words, date in _ITEM.findall(_shown(request).partition("\n\n")[2]):
        if not words.strip().startswith("~~"):
            found.append(
                {"table": "tasks", "data": {"title": words.strip()} | ({"dueDate": date} if date else {})}
            )
    return {"records": found}


class RealRuns:
    """Servers, a user with a device, a worker, and the model that it asks."""

    def __init__(self, user: UserWithDevice, model: Provider) -> None:
        self.user, self.model = user, model
        self._known: set[str] = set()

    def run(self, folder: Path, files: list[Path]) -> Seen:
        """A run of a new agent over copies of the files."""
        from adiuva.accounts.keys import cipher_for
        from agents import journal
        from agents.models import Run, RunEvent

        place = self.user.folder / folder.name
        place.mkdir()
        for file in files:
            shutil.copy(file, place / file.name)
        self.model.calls.clear()
        run: Run = self.user.run_agent(self.user.agent(place, file_extensions=[]))
        assert run.started_at is not None and run.completed_at is not None
        seen = Seen(
            (run.completed_at - run.started_at).total_seconds(),
            str(run.state),
            [journal.problem_text(event) for event in journal.problems_of([run])[run.pk]],
            run.passed_over or {},
        )
        for request in self.model.chats:
            text = _shown(request)
            name = _DOCUMENT.search(text)
            assert name is not None
            seen.shown[name[1]].append(text)
        cipher = cipher_for(run.user_id)
        for row in RunEvent.objects.filter(run=run).order_by("seq"):
            event = journal.event_body(row, cipher)
            if event.get("source") and event.get("code"):
                name_of = file_name(event["source"])
                seen.said[name_of].append(f"{event['code']}: {event.get('message') or ''}".rstrip(": "))
                if event["kind"] == "source_failed":
                    seen.failed.add(name_of)
        seen.arrived = list(self._new_rows())
        return seen

    def _new_rows(self) -> Iterator[str]:
        file = self.user.servers.folder / "device" / "data.sqlite3"
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
            for key, title, due in store.execute("SELECT id, title, dueDate FROM tasks ORDER BY rowid"):
                if key not in self._known:
                    self._known.add(key)
                    day = time.strftime("%Y-%m-%d", time.gmtime(due / 1000 + 43_200)) if due else ""
                    yield f"{title}{day and f' (due {day})'}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", nargs="?", type=Path)
    folder = arguments.parse_args().folder
    with bench_servers() as servers, Provider(default=tasks_of_items) as model:
        user = UserWithDevice(servers)
        user.worker_with(model.url, _AT_ONCE)
        runs = RealRuns(user, model)
        if folder:
            _show_cases(folder, runs)
        else:
            _measure(runs)


# ── Files beside what is right ──────────────────────────────────────────────────────────────────────────


def _show_cases(folder: Path, runs: RealRuns) -> None:
    without: list[tuple[str, str]] = []
    for names, what, right in _rows((folder / "README.md").read_text()):
        files = [file for name in names for file in _files_of(folder / name)]
        if not files:
            without.append((what, right))
            continue
        place = folder / names[0].strip("/").replace("/", "-")
        seen = runs.run(place, files)
        print(f"\n═══ {what}\n    right: {right}")
        print(f"    the run: {seen.state} {seen.errors or ''} passed over: {seen.passed_over}")
        for file in sorted(files):
            print(f"── {file.relative_to(folder)}")
            for said in seen.said[file.name]:
                print(f"   journal: {said}")
            if not seen.shown[file.name]:
                print("   the model was shown nothing")
            for text in seen.shown[file.name]:
                print(_shortened(text))
        print(f"── arrived: {len(seen.arrived)}")
        for row in seen.arrived:
            print(f"   {row}")
    print("\n═══ rows without files, which are in the tests alone")
    for what, right in without:
        print(f"    {what}\n      right: {right}")


def _rows(readme: str) -> Iterator[tuple[list[str], str, str]]:
    """The rows of all tables: the files or folders that the first cell names, the cell, and the last one."""
    for line in readme.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if (
            line.startswith("|")
            and len(cells) >= 3
            and set(line) - set("|- ")
            and cells[-1] != "what is right"
        ):
            yield _NAMED.findall(cells[0]), cells[0], " | ".join(cells[2:])


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(each for each in path.rglob("*") if each.is_file())
    return [path] if path.is_file() else []


def _shortened(text: str) -> str:
    """Without blank lines, and of long lines that differ in their numbers only the first."""
    lines: list[str] = []
    for line in text.splitlines():
        plain = re.sub(r"\d+", "", line)
        is_next = len(line) > 80 and bool(lines) and re.sub(r"\d+", "", lines[-1]) == f"   | {plain}"
        if plain.strip() and not is_next:
            lines.append(f"   | {line}")
    return "\n".join(lines)


# ── Files of every kind ─────────────────────────────────────────────────────────────────────────────────


def _measure(runs: RealRuns) -> None:
    files = sample_files(_FILES, _SEED)
    source = runs.user.servers.folder / "made"
    source.mkdir()
    for file in files:
        (source / file.name).write_bytes(file.raw)
    seen = runs.run(source, sorted(source.iterdir()))
    print(f"{len(files)} files in one run, which took {seen.seconds:.1f} s and ended as {seen.state}")
    read = {name for name, parts in seen.shown.items() if parts}
    lost = {file.name for file in files if file.name not in read | seen.failed}
    empty = {file.name for file in files if not file.raw.strip() or "empty" in file.damage}
    show("read", str(len(read)))
    show("listed with the reason", str(len(seen.failed - read)))
    show("read in part, which is said", str(sum(bool(seen.said[name]) for name in read)))
    show("neither, because there is nothing in them", str(len(lost & empty)))
    record("lost silently", len(lost - empty), most=0)
    for name in sorted(lost - empty):
        print(f"    {name}")
    shares: dict[tuple[str, bool], list[float | None]] = defaultdict(list)
    for file in files:
        words = "\n".join(seen.shown[file.name])
        shares[file.kind, bool(file.damage)].append(share_of_words(file, words) if words else None)
    print("kind   whole: read, share of words kept    damaged: read, share kept of those")
    whole = [share or 0.0 for (_, is_damaged), kept in shares.items() if not is_damaged for share in kept]
    record("of the words of whole files, kept", sum(whole) / len(whole), least=1)
    for kind in sorted({kind for kind, _ in shares}):
        print(f"{kind:6} {_summary(shares[kind, False])}                      {_summary(shares[kind, True])}")
    for name, raw in {
        "note.md": ("- [ ] Send the price list by Friday\n" * 600).encode()[:20_480],
        "note.txt": ("Préparer le devis pour l’été. " * 700).encode()[:20_480],
    }.items():
        record(f"CPU of reading {name}, {len(raw)} bytes", _cpu_of(name, raw) * 1e6, "µs")


def _summary(found: list[float | None]) -> str:
    kept = [share for share in found if share is not None]
    return f"{len(kept):2} of {len(found):2}, {sum(kept) / len(kept) if kept else 0:.2f}"


def _cpu_of(name: str, raw: bytes) -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        started = time.process_time()
        try:
            read_document(name, raw)
        except Unreadable:
            pass  # its last character is cut
        best = min(best, time.process_time() - started)
    return best


if __name__ == "__main__":
    main()
