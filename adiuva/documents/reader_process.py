"""The process in which documents are read: `python -m adiuva.documents.reader_process`.

It reads requests from its standard input, and forks a child for each, which limits itself, reads the document and
writes its answer into a pipe. This process never looks into a document. Where there is no fork, it reads one document
itself and ends.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import PurePosixPath
from typing import Final

import orjson

from adiuva.documents.errors import Unreadable
from adiuva.documents.isolation import MAX_ANSWER_BYTES, to_answer, to_refusal
from adiuva.documents.kinds import KINDS, Kind

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MAX_CPU_SECONDS: Final = 30
MAX_MEMORY_BYTES: Final = 1024 * 1024 * 1024
MAX_TEXT_CHARS: Final = 32 * 1024 * 1024
_IDLE_SECONDS: Final = 60.0
_LENGTH_BYTES: Final = 8
# Libraries that take long to import: before the fork, so that it happens once.
_LIBRARIES: Final = {
    "pdf:read_pdf": "pypdfium2",
    "office:read_docx": "mammoth",
    "office:read_sheets": "python_calamine",
    "office:read_rtf": "striprtf.striprtf",
}
_TOO_SLOW: Final = "it takes too much time to read"
_TOO_LONG: Final = "there is too much text in it"
_TOO_LARGE: Final = "it takes too much memory to read"
_DAMAGED: Final = "it is damaged in a way that stops its reader"


def main() -> None:
    source, target = sys.stdin.buffer, sys.stdout.buffer
    gc.freeze()
    while (length := _next(source.fileno())) is not None:
        request = orjson.loads(_exactly(source.fileno(), length))
        raw = _exactly(source.fileno(), request["size"])
        kind = KINDS[PurePosixPath(request["name"]).suffix.lower()]
        kind.load()
        if library := _LIBRARIES.get(kind.reader):
            import_module(library)
        answer = _in_child(kind, raw) if hasattr(os, "fork") else _read(kind, raw)
        target.write(len(answer).to_bytes(_LENGTH_BYTES, "big") + answer)
        target.flush()
        if not hasattr(os, "fork"):
            return


def _next(descriptor: int) -> int | None:
    """The length of the next request's head; None if there will be none."""
    if hasattr(os, "fork") and not select.select([descriptor], [], [], _IDLE_SECONDS)[0]:
        return None
    first = os.read(descriptor, _LENGTH_BYTES)
    if not first:
        return None
    return int.from_bytes(first + _exactly(descriptor, _LENGTH_BYTES - len(first)), "big")


def _exactly(descriptor: int, size: int) -> bytes:
    pieces: list[bytes] = []
    while size:
        piece = os.read(descriptor, min(size, 1 << 20))
        if not piece:
            raise SystemExit
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _in_child(kind: Kind, raw: bytes) -> bytes:
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(receiving)
            _limit()
            answer = _read(kind, raw)
            with os.fdopen(sending, "wb") as pipe:
                pipe.write(answer)
            code = 0
        finally:
            os._exit(code)  # whatever happened: the parent must not go on in two processes
    os.close(sending)
    pieces: list[bytes] = []
    size = 0
    while (piece := os.read(receiving, 1 << 20)) and size <= MAX_ANSWER_BYTES:
        pieces.append(piece)
        size += len(piece)
    os.close(receiving)
    if size > MAX_ANSWER_BYTES:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == 0:
        return b"".join(pieces)
    if size > MAX_ANSWER_BYTES:
        return to_refusal(_TOO_LONG)
    by = -os.waitstatus_to_exitcode(status)
    return to_refusal(_TOO_SLOW if by in (signal.SIGXCPU, signal.SIGKILL) else _DAMAGED)


def _limit() -> None:
    """Limits on memory, CPU time, and files of this process; no file can be written, no core is dumped."""
    # The child shares the standard streams, which belong to the protocol.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    for name, soft, hard in (
        ("RLIMIT_AS", MAX_MEMORY_BYTES, MAX_MEMORY_BYTES),
        ("RLIMIT_CPU", MAX_CPU_SECONDS, MAX_CPU_SECONDS + 1),
        ("RLIMIT_FSIZE", 0, 0),
        ("RLIMIT_NOFILE", 64, 64),
        ("RLIMIT_CORE", 0, 0),
    ):
        with suppress(ValueError, OSError, AttributeError):  # not every system has each
            resource.setrlimit(getattr(resource, name), (soft, hard))


def _read(kind: Kind, raw: bytes) -> bytes:
    """Raises whatever a library does on damage, which ends this process: its message may quote the document."""
    try:
        document = kind.load()(raw, kind.type)
        if len(document.text) > MAX_TEXT_CHARS:
            return to_refusal(_TOO_LONG)
        return to_answer(document)
    except Unreadable as unreadable:
        return to_refusal(unreadable.message)
    except MemoryError:
        return to_refusal(_TOO_LARGE)


if __name__ == "__main__":
    main()
