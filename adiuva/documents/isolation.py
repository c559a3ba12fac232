"""Reading of documents in a process with limits on memory, time and files, so that a hostile one hurts nobody.

A small process starts once and forks children that read; see `reader_process`. It gets no environment, and ends by
itself when nobody uses it or its parent is gone.
"""

from __future__ import annotations

import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson

import adiuva
from adiuva.documents.document import Attachment, Document, Head, one_line
from adiuva.documents.errors import Unreadable

# Wall-clock time for one document. The child itself limits its CPU time.
MAX_SECONDS: Final = 60.0
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
LENGTH_BYTES: Final = 8
# All threads of a process together read this many documents at once.
SHARED_PROCESSES: Final = min(4, os.cpu_count() or 1)
_TOO_SLOW: Final = "it takes too much time to read"
_CRASHED: Final = "it is damaged in a way that stops its reader"


class IsolatedReader:
    """Reader of as many documents at once as it has processes; other callers wait. Any thread may use it."""

    def __init__(self, *, processes: int = 1, max_seconds: float = MAX_SECONDS) -> None:
        self._max_seconds = max_seconds
        # Last in, first out, so that as few processes start as are needed.
        self._idle: queue.LifoQueue[_ReaderProcess] = queue.LifoQueue()
        self._all = [_ReaderProcess() for _ in range(processes)]
        for each in self._all:
            self._idle.put(each)

    def read(self, name: str, raw: bytes) -> Document:
        """Return the document. Raises Unreadable with the reason, also if it exceeds a limit or crashes its reader."""
        head = orjson.dumps({"name": name, "size": len(raw)})
        request = len(head).to_bytes(LENGTH_BYTES, "big") + head + raw
        process = self._idle.get()
        try:
            answer = process.exchange(request, self._max_seconds)
            if answer is None:  # the process ended because it had nothing to do, so a new one reads
                answer = process.exchange(request, self._max_seconds)
        finally:
            self._idle.put(process)
        if answer is None:
            raise Unreadable(_CRASHED)
        return _document(answer)

    def stop(self) -> None:
        """Wait for documents that are being read, and end the processes."""
        for process in [self._idle.get() for _ in self._all]:
            process.kill()
            self._idle.put(process)


class _ReaderProcess:
    """Process that starts at its first use and again after it has ended. One caller at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def exchange(self, request: bytes, max_seconds: float) -> bytes | None:
        """Return the answer, or None if the process has ended. Raises Unreadable if it takes too long."""
        if self._process is None or self._process.poll() is not None:
            self.kill()
            self._process = self._start()
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + max_seconds
        try:
            process.stdin.write(request)
            process.stdin.flush()
            length = _read(process.stdout.fileno(), LENGTH_BYTES, deadline)
            size = int.from_bytes(length, "big")
            if size > MAX_ANSWER_BYTES:
                raise Unreadable("there is too much text in it")
            return _read(process.stdout.fileno(), size, deadline)
        except TimeoutError:
            self.kill()
            raise Unreadable(_TOO_SLOW) from None
        except OSError:  # EOFError is none of them, but a broken pipe is
            self.kill()
            return None
        except BaseException:
            self.kill()
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        root = Path(adiuva.__file__).parent.parent
        return subprocess.Popen(  # our own module, by our own interpreter
            [sys.executable, "-m", "adiuva.documents.reader_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(os.sep).absolute(),
            env={"PYTHONPATH": str(root), "PYTHONUTF8": "1", **_needed_by_the_system()},
            start_new_session=True,
        )

    def kill(self) -> None:
        """End the process and the child that it may be waiting for."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass
        kill: Callable[[], object] = process.kill
        if hasattr(os, "killpg"):
            kill = lambda: os.killpg(process.pid, signal.SIGKILL)  # noqa: E731
        try:
            kill()
        except ProcessLookupError:
            pass
        process.wait()


_shared: IsolatedReader | None = None
_shared_lock = threading.Lock()


def shared_reader() -> IsolatedReader:
    """Return the reader of this process, made anew after a fork."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = IsolatedReader(processes=SHARED_PROCESSES)
        return _shared


def _forget_shared() -> None:
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_shared)


def _needed_by_the_system() -> dict[str, str]:
    """Return the variables without which Windows starts nothing."""
    return {
        name: os.environ[name] for name in ("SYSTEMROOT", "PATH") if name in os.environ and os.name == "nt"
    }


def _read(descriptor: int, size: int, deadline: float) -> bytes:
    """Read exactly `size` bytes. Raises TimeoutError at the deadline, OSError if there are no more."""
    pieces: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while size:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            piece = os.read(descriptor, min(size, 1 << 20))
            if not piece:
                raise BrokenPipeError
            pieces.append(piece)
            size -= len(piece)
    return b"".join(pieces)


def _document(answer: bytes) -> Document:
    """Return the child's document, after a check, because a hostile document may have taken the child over."""
    try:
        said: dict[str, Any] = orjson.loads(answer)
    except orjson.JSONDecodeError:
        raise Unreadable(_CRASHED) from None
    if "unreadable" in said:
        raise Unreadable(one_line(said["unreadable"]) or _CRASHED)
    head = said.get("head", {})
    names = ("title", "date", "sender", "recipients", "message_id")
    return Document(
        text=str(said["text"]),
        kind=one_line(said["kind"]),
        head=Head(*(one_line(head.get(name, "")) for name in names)),
        attachments=tuple(
            Attachment(one_line(name), one_line(kind), size if isinstance(size, int) else None)
            for name, kind, size in said.get("attachments", [])
        ),
        problems=tuple(one_line(each) for each in said.get("problems", [])),
        notes=tuple(one_line(each) for each in said.get("notes", [])),
    )


def to_answer(document: Document) -> bytes:
    """Return the answer as bytes that `IsolatedReader` understands."""
    head = document.head
    return orjson.dumps(
        {
            "text": document.text,
            "kind": document.kind,
            "head": {
                "title": head.title,
                "date": head.date,
                "sender": head.sender,
                "recipients": head.recipients,
                "message_id": head.message_id,
            },
            "attachments": [[each.name, each.type, each.size] for each in document.attachments],
            "problems": list(document.problems),
            "notes": list(document.notes),
        }
    )


def to_refusal(reason: str) -> bytes:
    return orjson.dumps({"unreadable": reason})
