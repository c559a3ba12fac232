"""Vectors of the user's texts: unit length, float32, compared exactly and only within one dimension."""

from __future__ import annotations

import sqlite3
from typing import Any

import numpy as np
import numpy.typing as npt

from adiuva.devices.client.errors import CallRefused

_MAX_DIMENSIONS = 16_384
_MAX_RESULTS = 1_000
_ROWS_AT_ONCE = 8_192  # bounds a search's memory
_FLOAT = np.dtype("<f4")

Vector = npt.NDArray[np.float32]


def upsert(db: sqlite3.Connection, vector: Any, *, key: str, project: str | None, content: str) -> None:
    """Store one text's vector in place of an earlier one with this key, of any dimension."""
    unit = _unit(vector)
    db.execute(
        "INSERT OR REPLACE INTO adiuva_vectors (id, project_id, content, dimension, vector)"
        " VALUES (?, ?, ?, ?, ?)",
        (key, project, content, len(unit), unit.tobytes()),
    )


def search(db: sqlite3.Connection, vector: Any, limit: Any) -> list[dict[str, Any]]:
    """Return the texts nearest by cosine, best first, as `{id, content, score}`.

    Raises CallRefused if there are vectors but none of this dimension: another model made them.
    """
    unit = _unit(vector)
    wanted = 10 if limit is None else limit
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= _MAX_RESULTS:
        raise CallRefused(f"limit must be a whole number from 1 to {_MAX_RESULTS}")
    best: list[tuple[float, int]] = []
    cursor = db.execute("SELECT rowid, vector FROM adiuva_vectors WHERE dimension = ?", (len(unit),))
    while rows := cursor.fetchmany(_ROWS_AT_ONCE):
        matrix = np.frombuffer(b"".join(row[1] for row in rows), dtype=_FLOAT).reshape(len(rows), -1)
        scores = matrix @ unit
        kept = np.argsort(-scores, kind="stable")[:wanted]
        best += [(float(scores[place]), rows[place][0]) for place in kept]
        best = sorted(best, key=lambda found: (-found[0], found[1]))[:wanted]
    if not best:
        _check_dimension(db, len(unit))
    return [_result(db, score, row) for score, row in best]


def _result(db: sqlite3.Connection, score: float, row: int) -> dict[str, Any]:
    key, content = db.execute("SELECT id, content FROM adiuva_vectors WHERE rowid = ?", (row,)).fetchone()
    return {"id": key, "content": content, "score": score}


def _check_dimension(db: sqlite3.Connection, dimension: int) -> None:
    other = db.execute("SELECT dimension FROM adiuva_vectors LIMIT 1").fetchone()
    if other is not None:
        raise CallRefused(f"the vectors here have {other[0]} dimensions, not {dimension}")


def _unit(vector: Any) -> Vector:
    if not isinstance(vector, list | tuple) or not 1 <= len(vector) <= _MAX_DIMENSIONS:
        raise CallRefused(f"vector must be a list of 1 to {_MAX_DIMENSIONS} numbers")
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in vector):
        raise CallRefused("vector must hold numbers only")
    wide = np.array(vector, dtype=np.float64)
    if not np.isfinite(wide).all():
        raise CallRefused("vector must hold finite numbers only")
    if largest := float(np.abs(wide).max()):
        wide /= largest  # keeps the squares below finite
        wide /= np.linalg.norm(wide)
    return wide.astype(_FLOAT)
