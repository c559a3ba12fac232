"""Files of every kind through the headless device's reading: what is kept, what is refused, what it costs.

`python -m bench.documents`: 300 files in twelve languages, half of them damaged, in one run of the device; and the CPU
time of plain files. `python -m bench.documents FOLDER` prints what a model would be shown of the files of a folder.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Final

from adiuva.documents import Document, Unreadable, cut_into_parts
from adiuva.documents.reading import read_document
from tests.unit.documents.sample_files import run_device, sample_files, share_kept

_FILES: Final = 300
_SEED: Final = 20_261_128
_PART_CHARS: Final = 8_000
_ROUNDS: Final = 200


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", nargs="?", type=Path)
    folder = arguments.parse_args().folder
    asyncio.run(_show(folder) if folder else _measure())


async def _show(folder: Path) -> None:
    """What each file of a folder becomes: the parts as a model is shown them, or the reason."""
    run = await run_device(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"\n═══ {path.relative_to(folder)}")
        if path.name in run.problems:
            print(f"not read: {run.problems[path.name]}")
        elif path.name not in run.files:
            print("passed over")
        else:
            file = run.files[path.name]
            document = Document.from_wire(file.content, file.metadata, file.name)
            for each in (*document.problems, *document.notes):
                print(f"said: {each}")
            if document.head.message_id:
                print(f"Message-ID: {document.head.message_id}")
            for part in cut_into_parts(
                document.text, most_chars=_PART_CHARS, head=document.head, kind=document.kind
            ):
                print(
                    f"── part {part.number} of {part.count}\n{part.context}\n\n{part.text}".replace(
                        "\n\n\n", "\n\n"
                    )
                )
    print(f"\npassed over: {run.passed_over}")


async def _measure() -> None:
    files = sample_files(_FILES, _SEED)
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            (Path(folder) / file.name).write_bytes(file.raw)
        started = time.monotonic()
        run = await run_device(Path(folder))
        took = time.monotonic() - started
    lost = {file.name for file in files} - run.files.keys() - run.problems.keys()
    print(
        f"{len(files)} files in {took:.1f} s: {len(run.files)} read, {len(run.problems)} refused, {len(lost)} lost"
    )
    shares: dict[tuple[str, bool], list[float | None]] = defaultdict(list)
    for file in files:
        sent = run.files.get(file.name)
        shares[file.kind, bool(file.damage)].append(share_kept(file, sent.content) if sent else None)
    print("kind   whole: read, words kept    damaged: read, words kept of those")
    for kind in sorted({kind for kind, _ in shares}):
        print(f"{kind:6} {_summary(shares[kind, False])}            {_summary(shares[kind, True])}")
    for name, raw in {
        "note.md": ("- [ ] Send the price list by Friday\n" * 600).encode()[:20_480],
        "note.txt": ("Préparer le devis pour l’été. " * 700).encode()[:20_480],
    }.items():
        print(f"CPU of {name}, {len(raw)} bytes: {_cpu_of(name, raw) * 1e6:.0f} µs")


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
