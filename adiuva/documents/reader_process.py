"""Process in which documents are read: `python -m adiuva.documents.reader_process`.

It reads requests from its standard input and hands each to a forked child, which limits itself, reads the document and
answers. A child that reads with a library reads one document. A child that reads with our own Python goes on, since a
fork takes milliseconds, in some containers twenty. This process never looks into a document. Without fork, it reads one
document itself and ends.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import PurePosixPath
from typing import Final

import orjson

from adiuva.documents.errors import Unreadable
from adiuva.documents.isolation import LENGTH_BYTES, MAX_ANSWER_BYTES, to_answer, to_refusal
from adiuva.documents.kinds import KINDS, Kind

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MAX_CPU_SECONDS: Final = 30
MAX_MEMORY_BYTES: Final = 1024 * 1024 * 1024
_MAX_FILES: Final = 64
MAX_TEXT_CHARS: Final = 32 * 1024 * 1024
_IDLE_SECONDS: Final = 60.0
# A child is replaced after this many documents, to free whatever memory it has taken.
_MAX_READS: Final = 500
# Libraries that take long to import, so they are imported once, before the fork.
_LIBRARIES: Final = {
    "pdf:read_pdf": "pypdfium2",
    "office:read_docx": "mammoth",
    "office:read_sheets": "python_calamine",
    "office:read_rtf": "striprtf.striprtf",
    "outlook_message:read_msg": "oxmsg",
}
_TOO_SLOW: Final = "it takes too much time to read"
_TOO_LONG: Final = "there is too much text in it"
_TOO_LARGE: Final = "it takes too much memory to read"
_DAMAGED: Final = "it is damaged in a way that stops its reader"


def main() -> None:
    source, target = sys.stdin.buffer, sys.stdout.buffer
    gc.freeze()
    kept: _Child | None = None
    while (head := _next(source.fileno())) is not None:
        request = orjson.loads(head)
        raw = _exactly(source.fileno(), request["size"])
        kind = KINDS[PurePosixPath(request["name"]).suffix.lower()]
        kind.load()
        if library := _LIBRARIES.get(kind.reader):
            import_module(library)
        if not hasattr(os, "fork"):
            answer = _read(kind, raw)
        else:
            child = (kept if kind.shares_process else None) or _Child()
            answer = child.read(request["name"], raw)
            if kind.shares_process:
                kept = None if child.has_ended else child
            elif not child.has_ended:
                child.end()
        target.write(len(answer).to_bytes(LENGTH_BYTES, "big") + answer)
        target.flush()
        if not hasattr(os, "fork"):
            return


def _next(descriptor: int) -> bytes | None:
    """Return the next request's head; None if there will be none."""
    if hasattr(os, "fork") and not select.select([descriptor], [], [], _IDLE_SECONDS)[0]:
        return None
    first = os.read(descriptor, LENGTH_BYTES)
    if not first:
        return None
    return _exactly(
        descriptor, int.from_bytes(first + _exactly(descriptor, LENGTH_BYTES - len(first)), "big")
    )


def _exactly(descriptor: int, size: int) -> bytes:
    pieces: list[bytes] = []
    while size:
        piece = os.read(descriptor, min(size, 1 << 20))
        if not piece:
            raise SystemExit
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


class _Child:
    """Forked process with limits that reads documents, one after the other."""

    def __init__(self) -> None:
        reading, self._requests = os.pipe()
        self._answers, writing = os.pipe()
        self._reads = 0
        self.has_ended = False
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                _serve(reading, writing)
                code = 0
            finally:
                os._exit(code)  # whatever happened: the parent must not go on in two processes
        os.close(reading)
        os.close(writing)

    def read(self, name: str, raw: bytes) -> bytes:
        """Return the answer; a refusal if the document ended the process, which is then of no more use."""
        head = name.encode()
        request = b"".join(len(each).to_bytes(LENGTH_BYTES, "big") + each for each in (head, raw))
        with suppress(BrokenPipeError):
            written = 0
            while written < len(request):
                written += os.write(self._requests, memoryview(request)[written:])
        length = self._some(LENGTH_BYTES)
        size = int.from_bytes(length, "big") if len(length) == LENGTH_BYTES else -1
        if size > MAX_ANSWER_BYTES:
            os.kill(self._pid, signal.SIGKILL)
            self.end()
            return to_refusal(_TOO_LONG)
        answer = self._some(size)
        if size < 0 or len(answer) < size:
            by = -self.end()
            return to_refusal(_TOO_SLOW if by in (signal.SIGXCPU, signal.SIGKILL) else _DAMAGED)
        self._reads += 1
        if self._reads == _MAX_READS:
            self.end()
        return answer

    def end(self) -> int:
        """Let the child end, and return its exit code: less than zero if a signal ended it."""
        self.has_ended = True
        os.close(self._requests)
        os.close(self._answers)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _some(self, size: int) -> bytes:
        """Return that many bytes, or fewer if the child has ended."""
        pieces: list[bytes] = []
        while size > 0 and (piece := os.read(self._answers, min(size, 1 << 20))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


def _serve(reading: int, writing: int) -> None:
    """Answer requests in the child until there are none."""
    # The child shares the standard streams, which belong to the protocol, and another child's pipes.
    nothing = os.open(os.devnull, os.O_RDWR)
    places = [os.dup(descriptor) for descriptor in (nothing, nothing, nothing, reading, writing)]
    for place, descriptor in enumerate(places):
        os.dup2(descriptor, place)
    os.closerange(len(places), _MAX_FILES)
    reading, writing = 3, 4
    _limit()
    while length := os.read(reading, LENGTH_BYTES):
        length += _exactly(reading, LENGTH_BYTES - len(length))
        name = _exactly(reading, int.from_bytes(length, "big")).decode()
        raw = _exactly(reading, int.from_bytes(_exactly(reading, LENGTH_BYTES), "big"))
        _limit_cpu()
        answer = _read(KINDS[PurePosixPath(name).suffix.lower()], raw)
        del raw
        with os.fdopen(os.dup(writing), "wb") as pipe:
            pipe.write(len(answer).to_bytes(LENGTH_BYTES, "big") + answer)


def _limit() -> None:
    """Limit memory and files of this process; it can write no file and dumps no core."""
    for name, most in (
        ("RLIMIT_AS", MAX_MEMORY_BYTES),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_NOFILE", _MAX_FILES),
        ("RLIMIT_CORE", 0),
    ):
        with suppress(ValueError, OSError, AttributeError):  # not every system has each
            resource.setrlimit(getattr(resource, name), (most, most))


def _limit_cpu() -> None:
    """Give this process MAX_CPU_SECONDS from now on."""
    most = int(time.process_time()) + 1 + MAX_CPU_SECONDS
    with suppress(ValueError, OSError, AttributeError):
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _read(kind: Kind, raw: bytes) -> bytes:
    """Read a document. Raises what a library does on damage, which ends this process: it may quote the document."""
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
