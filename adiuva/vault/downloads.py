"""Responses of stored bytes: all or one range (RFC 9110, with If-Range), or 304 if the client has them.

A download of all bytes compares them with their checksum, and sends the last piece only if they are right. So a damaged
object never ends like a good one.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import get_conditional_response
from django.utils.http import http_date, parse_http_date_safe

from adiuva.core import db
from adiuva.object_store import threads
from adiuva.object_store.store import ObjectMissing, store
from adiuva.vault import scrub
from adiuva.vault.checksums import etag
from adiuva.vault.errors import ChangedMeanwhile, Corrupt, RangeNotSatisfiable
from adiuva.vault.models import Backup, Record

_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Damaged(Exception):
    """Error for bytes that differ from the stored ones. The connection is cut, so that nothing looks like success."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    start: int
    end: int  # exclusive


def parse_range(header: str, size: int) -> ByteRange | None:
    """Return the part that a Range header asks for; None for all of it, also for several ranges or an invalid header.

    Raises RangeNotSatisfiable.
    """
    found = _RANGE.fullmatch(header.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        last = int(found[2])
        if last == 0 or size == 0:
            raise RangeNotSatisfiable(size)
        return ByteRange(max(0, size - last), size)
    start = int(found[1])
    end = min(size, int(found[2]) + 1) if found[2] else size
    if found[2] and int(found[2]) < start:
        return None  # an invalid range is ignored
    if start >= size:
        raise RangeNotSatisfiable(size)
    return ByteRange(start, end)


def respond(
    request: HttpRequest, row: Record | Backup, *, changed_at: dt.datetime, headers: Mapping[str, str]
) -> HttpResponseBase:
    """Answer with the bytes of a row. Raises Corrupt, ChangedMeanwhile or RangeNotSatisfiable."""
    if row.corrupt:
        raise Corrupt
    tag, changed = etag(row.checksum), int(changed_at.timestamp())
    known = get_conditional_response(request, etag=tag, last_modified=changed)
    if known is not None and known.status_code == HTTPStatus.PRECONDITION_FAILED:
        version = row.version if isinstance(row, Record) else None
        raise ChangedMeanwhile(checksum=bytes(row.checksum).hex(), version=version, deleted=False)
    response = known if known is not None else _bytes(request, row, tag, changed)
    for name, value in {
        **headers,
        "ETag": tag,
        "Last-Modified": http_date(changed),
        "X-Checksum": bytes(row.checksum).hex(),
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
    }.items():
        response.headers[name] = value
    return response


def _bytes(request: HttpRequest, row: Record | Backup, tag: str, changed: int) -> HttpResponseBase:
    wanted = request.headers.get("Range", "")
    if (condition := request.headers.get("If-Range")) and not _holds(condition, tag, changed):
        wanted = ""
    part = parse_range(wanted, row.size) if request.method in ("GET", "HEAD") else None
    start, end = (part.start, part.end) if part is not None else (0, row.size)
    if isinstance(row, Record) and row.object is None:
        response: HttpResponseBase = HttpResponse(_inline(row)[start:end])
    elif request.method == "HEAD":
        response = HttpResponse()
    else:
        response = StreamingHttpResponse(_stream(row, start, end))
    response.headers["Content-Type"] = "application/octet-stream"
    response.headers["Content-Length"] = str(end - start)
    if part is not None:
        response.status_code = 206
        response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{row.size}"
    return response


def _holds(condition: str, tag: str, changed: int) -> bool:
    """Return whether an If-Range header names the stored version: a strong ETag, or exactly this date."""
    return condition == tag or parse_http_date_safe(condition) == changed


def _inline(row: Record) -> bytes:
    data = bytes(row.blob or b"")
    if hashlib.sha256(data).digest() != bytes(row.checksum):
        scrub.mark(row)
        raise Corrupt
    return data


async def _stream(row: Record | Backup, start: int, end: int) -> AsyncIterator[bytes]:
    """Yield pieces of the object, as fast as the client takes them. Raises Damaged."""
    assert row.object is not None
    whole = start == 0 and end == row.size
    digest, held = hashlib.sha256(), b""
    pieces = store().read(row.object, start, end)
    try:
        while (piece := await threads.run(_next, pieces)) is not None:
            if held:
                yield held
            held = piece
            if whole:
                await threads.run(digest.update, piece)
    except ObjectMissing:
        await db.run(scrub.mark, row)
        raise Damaged from None
    if whole and digest.digest() != bytes(row.checksum):
        await db.run(scrub.mark, row)
        raise Damaged
    if held:
        yield held


def _next(pieces: Iterator[bytes]) -> bytes | None:
    return next(pieces, None)
