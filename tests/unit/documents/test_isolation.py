"""A hostile document stops its own process, and the next document is read as if nothing had been."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adiuva.documents import Unreadable, isolation
from adiuva.documents.isolation import IsolatedReader
from tests.unit.documents import office_files

HOSTILE = '''
"""Stands in for a reader that a hostile document has taken over."""
import os, signal, sys, time
from adiuva.documents.document import Document

def read_rtf(raw, kind):
    said = raw.decode()
    if said == "memory":
        bytearray(8 << 30)
    elif said == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif said == "time":
        while True:
            pass
    elif said == "sleep":
        time.sleep(600)
    elif said == "write":
        with open(os.environ["PYTHONPATH"].split(":")[0] + "/written", "w") as file:
            file.write("x" * 10)
    elif said == "recursion":
        read = lambda: read()
        read()
    elif said == "print":
        print("noise", flush=True)
        sys.stdout.flush()
    elif said == "pid":
        return Document(str(os.getpid()), kind)
    elif said == "environment":
        return Document(",".join(sorted(os.environ)), kind)
    elif said == "much":
        return Document("x" * (70 << 20), kind)
    return Document(said, kind)
'''


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedReader]:
    """A reader whose RTF reader does what the document says."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, types\n"
        "module = types.ModuleType('adiuva.documents.office')\n"
        f"exec({HOSTILE!r}, module.__dict__)\n"
        "sys.modules['adiuva.documents.office'] = module\n"
        "module.read_eml = module.read_rtf\n"
        "sys.modules['adiuva.documents.mail'] = module\n"
        "import resource\n"
        "real = resource.setrlimit\n"
        "resource.setrlimit = lambda which, limits: real(which, (1, 2) if which == resource.RLIMIT_CPU else limits)\n"
    )
    monkeypatch.setattr(
        isolation, "_needed_by_the_system", lambda: {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}
    )
    found = IsolatedReader(max_seconds=20)
    yield found
    found.stop()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("memory", "memory"),
        ("crash", "damaged"),
        ("time", "time"),
        ("write", "damaged"),
        ("recursion", "damaged"),
        ("much", "too much"),
    ],
)
def test_what_a_hostile_document_does_ends_with_it(
    reader: IsolatedReader, tmp_path: Path, said: str, reason: str
) -> None:
    with pytest.raises(Unreadable, match=reason):
        reader.read("a.rtf", said.encode())
    assert reader.read("a.rtf", b"next").text == "next"
    if said == "write":
        assert (tmp_path / "written").read_bytes() == b""


def test_what_shares_a_process_ends_only_that_process(reader: IsolatedReader) -> None:
    """The readers of mails and pages go on with the next one; a fork for each would cost more than the reading."""
    assert reader.read("a.eml", b"pid").text == reader.read("b.eml", b"pid").text
    assert reader.read("a.rtf", b"pid").text != reader.read("b.rtf", b"pid").text
    for said, reason in (("crash", "damaged"), ("memory", "memory"), ("recursion", "damaged")):
        with pytest.raises(Unreadable, match=reason):
            reader.read("a.eml", said.encode())
        assert reader.read("a.eml", b"next").text == "next"


def test_what_sleeps_is_ended_by_the_clock(reader: IsolatedReader) -> None:
    reader._max_seconds = 3
    started = time.monotonic()
    with pytest.raises(Unreadable, match="time"):
        reader.read("a.rtf", b"sleep")
    assert time.monotonic() - started < 20
    reader._max_seconds = 20
    assert reader.read("a.rtf", b"next").text == "next"


def test_a_document_sees_no_environment_and_cannot_speak_for_another(reader: IsolatedReader) -> None:
    assert set(reader.read("a.rtf", b"environment").text.split(",")) <= {
        "PYTHONPATH",
        "PYTHONUTF8",
        "LC_CTYPE",
    }
    assert reader.read("a.rtf", b"print").text == "print"


def test_several_threads_may_read_at_once() -> None:
    reader = IsolatedReader()
    texts: list[str] = []
    threads = [
        threading.Thread(
            target=lambda number=number: texts.append(
                reader.read("a.rtf", office_files.rtf("t", [f"n{number}"])).text
            )
        )
        for number in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader.stop()
    assert sorted(texts) == [f"t\nn{number}\n" for number in range(6)]


def test_a_reader_that_ended_is_started_again() -> None:
    reader = IsolatedReader()
    assert reader.read("a.rtf", office_files.rtf("t", ["x"])).text == "t\nx\n"
    process = reader._all[0]._process
    assert process is not None
    process.kill()
    process.wait()
    assert reader.read("a.rtf", office_files.rtf("t", ["y"])).text == "t\ny\n"
    reader.stop()
