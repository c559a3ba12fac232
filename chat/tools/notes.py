"""The user's notes: rows, and their vectors for the search by meaning.

A note is kept whatever becomes of its vector; the answer says when there is none. Notes that agents delivered have
no vector, so a search looks for words too.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ToolException
from pydantic import Field

from adiuva import llm
from adiuva.devices.protocol import Data, ToolCall, ToolResultBody
from chat.device_session import Desk, Refused, desk_of, missing, one_line, tool_call
from chat.tools import base, formatting
from chat.tools.base import Nothing, ProjectId, Search, device_tool

_MOST: Final = (100, 25, 6)  # rows carry their contents, and one frame must hold them
_TEXT: Final = 20_000
_EMBEDDED: Final = (
    8_000  # characters: embedding models take some 8,000 tokens, and some scripts a token a letter
)
_EMBED_S: Final = 15.0  # a turn does not wait longer for a vector that it can do without
_FOUND: Final = 10
_SNIPPET: Final = 240
_RANK: Final = 60  # of reciprocal rank fusion, as its authors chose it

_ID = Annotated[str, Field(description="the note's id")]
_Markdown = Annotated[str, Field(description="Markdown")]


@device_tool("notes", "select", "Looking at your notes")
async def list_notes(config: RunnableConfig, project_id: ProjectId = None, search: Search = None) -> str:
    """List the user's notes by title, newest first, without their contents."""
    desk = desk_of(config)
    given = base.filters(projectId=project_id, search=search, orderBy="updatedAt desc")
    rows, bound = await _select(desk, given)
    return formatting.listed(desk, "notes", rows, bound=bound, narrow="project_id or search")


@device_tool("notes", "select", "Reading a note", key="note_id")
async def get_note(
    config: RunnableConfig,
    note_id: _ID,
    start: Annotated[int | Nothing, Field(description="character to read on from")] = None,
) -> str:
    """Read a note's content."""
    desk = desk_of(config)
    found = (await desk.call("get", "notes", data={"id": note_id})).row
    if found is None:
        raise ToolException(missing("notes", note_id))
    start = max(0, start or 0)
    text = formatting.quoted(found.get("content"), _TEXT, start=start)
    where = f" from character {start:,} on" if start else ""
    head = f"The note {formatting.row(desk, 'notes', found)}."
    return (
        f"{head} Its content{where}, each line behind a bar:\n{text}"
        if text
        else f"{head} It is empty{where}."
    )


@device_tool("notes", "insert", "Writing a note")
async def create_note(
    config: RunnableConfig, title: str, content: _Markdown, project_id: ProjectId = None
) -> str:
    """Create a note."""
    desk = desk_of(config)
    data = base.new_row(desk, "notes", title=title, content=content, projectId=project_id)
    made = (await desk.call("insert", "notes", data=data)).row or {}
    return formatting.done(desk, "Created", "notes", made) + await _index(desk, made)


@device_tool("notes", "update", "Changing a note", key="note_id")
async def update_note(
    config: RunnableConfig,
    note_id: _ID,
    title: str | Nothing = None,
    content: Annotated[str | Nothing, Field(description="Markdown; replaces all of it")] = None,
    project_id: ProjectId = None,
) -> str:
    """Change a note; only what is given changes. "none" clears project_id."""
    desk = desk_of(config)
    changes = base.updates(desk, "notes", title=title, content=content, projectId=project_id)
    changed = (await desk.call("update", "notes", data={"id": note_id, "updates": changes})).row or {}
    return formatting.done(desk, "Updated", "notes", changed) + await _index(desk, changed)


@device_tool("notes", "delete", "Deleting a note", key="note_id")
async def delete_note(config: RunnableConfig, note_id: _ID) -> str:
    """Delete a note for good."""
    desk = desk_of(config)
    await desk.call("delete", "notes", data={"id": note_id})
    return formatting.deleted(desk, "notes", note_id)


@device_tool("notes", "select", "Searching your notes")
async def search_notes(
    config: RunnableConfig, query: Annotated[str, Field(description="what to look for, in a few words")]
) -> str:
    """Search the user's notes by meaning and by words; best first, each with a snippet. get_note reads one."""
    desk = desk_of(config)
    words = one_line(query, 1_000)
    if not words:
        raise ToolException("Failed: query must not be empty.")
    vector, remark = await _vector(words)
    by_words = tool_call("select", "notes", filters={"search": words}, limit=_FOUND)
    asked = (
        [by_words] if vector is None else [by_words, tool_call("vector_search", vector=vector, limit=_FOUND)]
    )
    told, *meant = await desk.calls(asked)
    if isinstance(told, ToolException):
        raise told
    near = []
    for outcome in meant:
        if isinstance(outcome, ToolException):
            remark = _WORDS_ONLY
        else:
            near = [str(one["id"]) for one in (outcome.results or [])[:_FOUND]]
    rows = {row["id"]: row for row in told.rows or []}
    ranks = _fused(list(rows), near)
    rows |= await _read(desk, [key for key in near if key not in rows])
    found = [rows[key] for key in ranks if key in rows][:_FOUND]
    if not found:
        return "No notes match." + remark
    shown = "\n".join(f"- {formatting.row(desk, 'notes', row)}\n  | {_snippet(row, words)}" for row in found)
    return f"{formatting.count(len(found), 'notes')}, best first:\n{shown}{remark}"


_UNINDEXED: Final = " It is saved, but not in the semantic index yet: only a search for its words finds it."
_WORDS_ONLY: Final = "\nThe search by meaning failed; these are the notes in which all of the words occur."


async def _select(desk: Desk, given: Data) -> tuple[list[Data], int]:
    """Notes, and how many were asked for: fewer, where the device cannot send as many in one frame."""
    for most in _MOST[:-1]:
        try:
            return await desk.select("notes", given, limit=most, names_of="projects"), most
        except Refused:
            continue
    return await desk.select("notes", given, limit=_MOST[-1], names_of="projects"), _MOST[-1]


async def _index(desk: Desk, note: Data) -> str:
    """Put a note's vector on the device. The remark for the answer, when that failed."""
    title, content, project = note.get("title"), note.get("content"), note.get("projectId")
    text = f"{title or ''}\n\n{content or ''}"[:_EMBEDDED]
    try:
        vector = await _embedded(llm.embedding_model(), text)
        data = {
            "id": note["id"],
            "projectId": project if isinstance(project, str) else None,
            "content": text,
        }
        await desk.call("vector_upsert", data=data, vector=vector)
    except (llm.ModelError, TimeoutError, ToolException):
        return _UNINDEXED
    return ""


async def _vector(words: str) -> tuple[list[float] | None, str]:
    """The vector of a query, or None and the remark that the answer needs. Without a model, none is missed."""
    try:
        model = llm.embedding_model()
    except llm.ModelNotConfigured:
        return None, ""
    try:
        return await _embedded(model, words), ""
    except (llm.ModelError, TimeoutError):
        return None, _WORDS_ONLY


async def _embedded(model: llm.EmbeddingModel, text: str) -> list[float]:
    """Raise a ModelError or TimeoutError."""
    async with asyncio.timeout(_EMBED_S):
        [vector] = await model.embed([text])
    return vector


async def _read(desk: Desk, keys: list[str]) -> dict[str, Data]:
    """Notes by id. A vector may have outlived its note."""
    calls: list[ToolCall] = [tool_call("get", "notes", data={"id": key}) for key in keys]
    outcomes = await desk.calls(calls)
    for outcome in outcomes:
        if isinstance(outcome, ToolException) and not isinstance(outcome, Refused):
            raise outcome
    return {
        outcome.row["id"]: outcome.row
        for outcome in outcomes
        if isinstance(outcome, ToolResultBody) and outcome.row is not None
    }


def _fused(*rankings: list[str]) -> list[str]:
    """One order of several, by reciprocal rank."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking, 1):
            scores[key] = scores.get(key, 0.0) + 1 / (_RANK + rank)
    return sorted(scores, key=lambda key: -scores[key])


def _snippet(note: Data, words: str) -> str:
    """Where a word of the query first stands, else the beginning."""
    content = note.get("content")
    if not isinstance(content, str):
        return ""
    folded = content.lower()
    places = [place for word in words.lower().split() if (place := folded.find(word)) >= 0]
    start = max(0, min(places, default=0) - _SNIPPET // 4)
    return ("…" if start else "") + one_line(content[start : start + 4 * _SNIPPET], _SNIPPET)


NOTES = (list_notes, get_note, create_note, update_note, delete_note, search_notes)
