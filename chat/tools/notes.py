"""Tools for the user's notes and their vectors, which semantic search needs.

A note is stored even if its vector is not; the answer then says so. Notes that agents delivered have no vector, so a
search also looks for words.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ToolException
from pydantic import Field

from adiuva import llm
from adiuva.devices.calls import new_call
from adiuva.devices.protocol import Data, ToolCall, ToolResultBody
from chat.device_session import DeviceSession, DeviceToolError, device_session_of, missing_row_text
from chat.tools import base, formatting
from chat.tools.base import OrNull, ProjectId, assistant_tool
from chat.untrusted_text import one_line

_MAX_ROWS: Final = 100
_MAX_EMBEDDED_CHARS: Final = (
    8_000  # characters: embedding models take some 8,000 tokens, and some scripts a token a letter
)
_EMBED_TIMEOUT_S: Final = 15.0  # a turn does not wait longer for a vector that it can do without
_MAX_RESULTS: Final = 10
_SNIPPET_CHARS: Final = 240
_FUSION_K: Final = 60  # the constant of reciprocal rank fusion, as its authors chose it

_NoteId = str
_Markdown = Annotated[str, Field(description="Markdown")]


@assistant_tool("notes", "select", "Looking at your notes")
async def list_notes(
    config: RunnableConfig,
    project_id: ProjectId = None,
    search: Annotated[
        str | OrNull, Field(description="by meaning and by words; best first, with snippets")
    ] = None,
) -> str:
    """List notes by title, newest first, or search them."""
    session = device_session_of(config)
    if (search or "").strip() and not project_id:
        return await _search_notes(session, search or "")
    given = base.given_filters(projectId=project_id, search=search, orderBy="updatedAt desc")
    found = await session.select("notes", given, limit=_MAX_ROWS, names_of="projects")
    return formatting.list_text(session, "notes", found, narrow="project_id or search")


@assistant_tool("notes", "select", "Reading a note", key="note_id")
async def get_note(
    config: RunnableConfig,
    note_id: _NoteId,
    start: Annotated[int | OrNull, Field(description="character to read on from")] = None,
) -> str:
    """Read a note's content."""
    session = device_session_of(config)
    found = (await session.call("get", "notes", data={"id": note_id})).row
    if found is None:
        raise ToolException(missing_row_text("notes", note_id))
    start = max(0, start or 0)
    text = formatting.quote(found.get("content"), session.max_result_chars, start=start)
    where = f" from character {start:,} on" if start else ""
    head = f"The note {formatting.row_text(session, 'notes', found)}."
    return (
        f"{head} Its content{where}, each line behind a bar:\n{text}"
        if text
        else f"{head} It is empty{where}."
    )


@assistant_tool("notes", "insert", "Writing a note")
async def create_note(
    config: RunnableConfig, title: str, content: _Markdown, project_id: ProjectId = None
) -> str:
    """Create a note."""
    session = device_session_of(config)
    data = base.insert_columns(session, "notes", title=title, content=content, projectId=project_id)
    made = (await session.call("insert", "notes", data=data)).row or {}
    return formatting.change_text(session, "Created", "notes", made) + await _index_note(session, made)


@assistant_tool("notes", "update", "Changing a note", key="note_id")
async def update_note(
    config: RunnableConfig,
    note_id: _NoteId,
    title: str | OrNull = None,
    content: Annotated[str | OrNull, Field(description="Markdown; replaces all of it")] = None,
    project_id: ProjectId = None,
) -> str:
    """Change a note; only what is given changes, "none" clears."""
    session = device_session_of(config)
    changes = base.update_columns(session, "notes", title=title, content=content, projectId=project_id)
    changed = (await session.call("update", "notes", data={"id": note_id, "updates": changes})).row or {}
    return formatting.change_text(session, "Updated", "notes", changed) + await _index_note(session, changed)


@assistant_tool("notes", "delete", "Deleting a note", key="note_id")
async def delete_note(config: RunnableConfig, note_id: _NoteId) -> str:
    """Delete a note for good."""
    session = device_session_of(config)
    await session.call("delete", "notes", data={"id": note_id})
    return formatting.deletion_text(session, "notes", note_id)


async def _search_notes(session: DeviceSession, query: str) -> str:
    """Return the notes that fit, best first, each with a snippet."""
    words = one_line(query, 1_000)
    vector, remark = await _query_vector(words)
    by_words = new_call("select", "notes", filters={"search": words}, limit=_MAX_RESULTS)
    calls = (
        [by_words]
        if vector is None
        else [by_words, new_call("vector_search", vector=vector, limit=_MAX_RESULTS)]
    )
    told, *meant = await session.call_many(calls)
    if isinstance(told, ToolException):
        raise told
    near = []
    for outcome in meant:
        if isinstance(outcome, ToolException):
            remark = _WORDS_ONLY
        else:
            near = [str(one["id"]) for one in (outcome.results or [])[:_MAX_RESULTS]]
    rows = {row["id"]: row for row in told.rows or []}
    ranks = _fuse_ranks(list(rows), near)
    rows |= await _read_notes(session, [key for key in near if key not in rows])
    found = [rows[key] for key in ranks if key in rows][:_MAX_RESULTS]
    if not found:
        return "No notes match." + remark
    shown = "\n".join(
        f"- {formatting.row_text(session, 'notes', row)}\n  | {_snippet(row, words)}" for row in found
    )
    return f"{formatting.count_text(len(found), 'notes')}, best first:\n{shown}{remark}"


_NOT_INDEXED: Final = " It is saved, but not in the semantic index yet: only a search for its words finds it."
_WORDS_ONLY: Final = "\nThe search by meaning failed; these are the notes in which all of the words occur."


async def _index_note(session: DeviceSession, note: Data) -> str:
    """Store a note's vector on the device. Returns the remark for the answer if that failed, else ""."""
    title, content, project = note.get("title"), note.get("content"), note.get("projectId")
    text = f"{title or ''}\n\n{content or ''}"[:_MAX_EMBEDDED_CHARS]
    try:
        vector = await _embed(llm.embedding_model(), text)
        data = {
            "id": note["id"],
            "projectId": project if isinstance(project, str) else None,
            "content": text,
        }
        await session.call("vector_upsert", data=data, vector=vector)
    except (llm.ModelError, TimeoutError, ToolException):
        return _NOT_INDEXED
    return ""


async def _query_vector(words: str) -> tuple[list[float] | None, str]:
    """Return a query's vector, or None and the remark for the answer: "" if no model is configured."""
    try:
        model = llm.embedding_model()
    except llm.ModelNotConfigured:
        return None, ""
    try:
        return await _embed(model, words), ""
    except (llm.ModelError, TimeoutError):
        return None, _WORDS_ONLY


async def _embed(model: llm.EmbeddingModel, text: str) -> list[float]:
    """Return a text's vector. Raises a ModelError or TimeoutError."""
    async with asyncio.timeout(_EMBED_TIMEOUT_S):
        [vector] = await model.embed([text])
    return vector


async def _read_notes(session: DeviceSession, keys: list[str]) -> dict[str, Data]:
    """Return notes by id. A vector may have outlived its note."""
    calls: list[ToolCall] = [new_call("get", "notes", data={"id": key}) for key in keys]
    outcomes = await session.call_many(calls)
    for outcome in outcomes:
        if isinstance(outcome, ToolException) and not isinstance(outcome, DeviceToolError):
            raise outcome
    return {
        outcome.row["id"]: outcome.row
        for outcome in outcomes
        if isinstance(outcome, ToolResultBody) and outcome.row is not None
    }


def _fuse_ranks(*rankings: list[str]) -> list[str]:
    """Merge several orders into one, by reciprocal rank."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking, 1):
            scores[key] = scores.get(key, 0.0) + 1 / (_FUSION_K + rank)
    return sorted(scores, key=lambda key: -scores[key])


def _snippet(note: Data, words: str) -> str:
    """Return the text around the first word of the query that is found, else the beginning."""
    content = note.get("content")
    if not isinstance(content, str):
        return ""
    folded = content.lower()
    places = [place for word in words.lower().split() if (place := folded.find(word)) >= 0]
    start = max(0, min(places, default=0) - _SNIPPET_CHARS // 4)
    return ("…" if start else "") + one_line(content[start : start + 4 * _SNIPPET_CHARS], _SNIPPET_CHARS)


NOTES = (list_notes, get_note, create_note, update_note, delete_note)
