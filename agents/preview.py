"""The preview of a dry run: the records it would create, kept sealed in its row and shown to its owner only.

Also chooses which sources a dry run reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final

import orjson

from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import UserCipher
from agents.models import Run
from agents.record_validation import Record

MAX_RECORDS: Final = 1_000
_MAX_CHARS: Final = 2 * 1024 * 1024
_MAX_SPARE: Final = 1_000


def append_records(run: Run, cipher: UserCipher, source: str, records: Sequence[tuple[Record, bool]]) -> bool:
    """Append the records found in a source, each with whether it was known before. The run's row must be locked.

    Returns whether there was room for all of them.
    """
    text = _open(run, cipher)
    lines = _lines(text)
    room = True
    for record, is_known in records:
        shown = {"table": record.table, "data": record.data, "source": source, "known": is_known}
        line = orjson.dumps(shown).decode()
        room = len(lines) < MAX_RECORDS and len(text) + len(line) < _MAX_CHARS
        if not room:
            break
        lines.append(line)
        text += f"{line}\n"
    if records:
        run.set(preview=Run.preview.seal(cipher, text, run.pk))
    return room


def read_records(run: Run) -> list[dict[str, Any]]:
    """Return the records, in the order in which they were found. `known`: whether an earlier run had found it."""
    return [orjson.loads(line) for line in _lines(_open(run, cipher_for(run.user_id)))]


def _open(run: Run, cipher: UserCipher) -> str:
    return Run.preview.unseal_from(cipher, run) if run.preview is not None else ""


def _lines(text: str) -> list[str]:
    """Return the lines of JSON. `splitlines` would also split at U+0085, U+2028 and U+2029, which JSON may hold."""
    return text.split("\n")[:-1]


class SourceSample:
    """Chooses the sources that a dry run reads: new or changed ones, or any if there are none; at most `most`."""

    def __init__(self, most: int | None) -> None:
        self._left = most
        # Unchanged sources, in case none is due; None once one was due.
        self._spare: dict[str, bytes] | None = {}

    def choose(self, files: Mapping[str, bytes], due: Sequence[bool], *, last: bool) -> dict[str, bytes]:
        """Choose among a list of sources (path → content hash). `last`: no other list follows."""
        wanted = {path: content for (path, content), is_due in zip(files.items(), due, strict=True) if is_due}
        if wanted:
            self._spare = None
        elif self._spare is not None:
            self._spare |= dict(islice(files.items(), _MAX_SPARE - len(self._spare)))
            if last:
                wanted = self._spare
        return dict(islice(wanted.items(), self.take(len(wanted))))

    def take(self, count: int) -> int:
        """Take up to `count` of the remaining places, and return how many there were."""
        if self._left is None:
            return count
        taken = min(count, self._left)
        self._left -= taken
        return taken
