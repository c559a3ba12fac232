"""Extraction: an agent reads the documents in a real run, and the rows that arrive on the device are scored."""

from __future__ import annotations

import asyncio
import json
import time
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from adiuva.core import db
from adiuva.devices.tables import TABLES
from bench.evaluation.cases import ZONE, Document
from bench.evaluation.participant import DEVICE_ID, Participant, participant
from bench.evaluation.record_scores import DocumentScore, FoundRecord, score_document
from bench.evaluation.row_changes import day_of

_END_STATES: Final = {"success", "partial", "error", "cancelled", "timeout"}
_TABLES: Final = ("tasks", "timelines", "notes")
_LOOK_EVERY_S: Final = 0.1


@dataclass
class DocumentsResult:
    """The scores by document, and what the run itself tells."""

    scores: list[tuple[Document, DocumentScore]] = field(default_factory=list)
    state: str = ""
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0


async def read_documents(
    web: str, documents: Sequence[Document], folder: Path, rows: Any, *, patience_s: float = 6 * 3600
) -> DocumentsResult:
    """Let a new agent read all documents in one run, and score what arrives."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for document in documents:
        files[document.id] = folder / f"{document.id}-{document.kind}.md"
        files[document.id].write_text(document.text, "utf-8")
    async with participant(web, rows=rows, grants=(folder,)) as user:
        before = user.rows()
        result = DocumentsResult()
        began = time.monotonic()
        run = await _run(user, folder, patience_s)
        result.seconds = time.monotonic() - began
        result.state, result.errors = run["state"], list(run["errors"])[:20]
        by_file = await db.run(_rows_by_file, user, list(files.values()))
        now = user.rows()
        names = {key: str(row["name"]) for key, row in now["projects"].items()}
        for document in documents:
            found = [
                _found(table, now[table][key], names)
                for table, key in by_file[files[document.id]]
                if key in now[table] and key not in before[table]
            ]
            result.scores.append((document, score_document(document.find, found, never=document.never)))
    return result


async def _run(user: Participant, folder: Path, patience_s: float) -> dict[str, Any]:
    body = {
        "name": "Evaluation",
        "device_id": DEVICE_ID,
        "directory_paths": [str(folder)],
        "data_types": list(_TABLES),
        "prompt_template": "What there is to do, the dates of my projects, and what is worth a note.",
        "file_extensions": [],
        "schedule_cron": "",
    }
    made = await user.rest.post("/agents/local", json=body)
    made.raise_for_status()
    started = await user.rest.post(f"/agents/{made.json()['id']}/run")
    started.raise_for_status()
    async with asyncio.timeout(patience_s):
        while True:
            seen = (await user.rest.get(f"/agents/runs/{started.json()['run_id']}")).json()
            if seen["state"] in _END_STATES:
                return dict(seen)
            await asyncio.sleep(_LOOK_EVERY_S)


def _rows_by_file(user: Participant, files: Sequence[Path]) -> dict[Path, list[tuple[str, str]]]:
    """The rows (table, id on the device) that were delivered from each file."""
    from adiuva.accounts.keys import cipher_for
    from adiuva.devices.models import OutboxRecord

    cipher = cipher_for(user.person.id)
    # As ClaimedRun.source_key makes it.
    places = {
        cipher.fingerprint(unicodedata.normalize("NFC", str(file)), f"source in {DEVICE_ID}"): file
        for file in files
    }
    found: defaultdict[Path, list[tuple[str, str]]] = defaultdict(list)
    for record in OutboxRecord.objects.filter(user_id=user.person.id, row_id_sealed__isnull=False):
        row_id = OutboxRecord.row_id_sealed.unseal_from(cipher, record)
        found[places[bytes(record.source)]].append((record.table, str(row_id)))
    return found


def _found(table: str, row: Any, projects: Any) -> FoundRecord:
    """A row without the values that the device sets by itself."""
    when = row.get("dueDate", row.get("date"))
    fields = {
        "date": day_of(when, ZONE) if when is not None else None,
        "assignee": tuple(json.loads(row["assignee"])) if row.get("assignee") else None,
        "project": projects.get(row.get("projectId")),
    }
    for name in ("status", "priority"):
        column = TABLES[table].by_name.get(name)
        if column is not None and row[name] != column.default:
            fields[name] = row[name]
    texts = [str(row[name]) for name in ("title", "description", "content") if row.get(name)]
    return FoundRecord(
        table, str(row["title"]), "\n".join(texts), {name: value for name, value in fields.items() if value}
    )
