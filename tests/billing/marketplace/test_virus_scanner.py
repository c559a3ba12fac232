"""The scanner of packages: what it finds blocks, and whatever else it does lets nothing pass."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

from billing.marketplace import virus_scanner
from billing.marketplace.findings import Severity
from tests.fakes.clamd import MARK, Clamd


@pytest.fixture
def clamd(settings: Any) -> Iterator[Clamd]:
    with Clamd() as found:
        settings.PLUGIN_SCANNER = found.url
        yield found


def test_what_it_is_shown_is_the_whole_package_and_what_it_finds_blocks(clamd: Clamd) -> None:
    large = bytes(600_000) + b"end"
    assert virus_scanner.scan(io.BytesIO(large)) == []
    (found,) = virus_scanner.scan(io.BytesIO(large + MARK))
    assert (found.check, found.severity) == ("scanner", Severity.BLOCKS)
    assert clamd.seen == [large, large + MARK]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"INSTREAM size limit exceeded. ERROR",
        b"stream: Can't open file ERROR",
        b"OK",
        b"stream: OK FOUND OK",
        b"x" * 10_000,
        b"\xff\xfe",
    ],
)
def test_an_answer_that_is_none_lets_nothing_pass(clamd: Clamd, answer: bytes | None) -> None:
    clamd.answer = answer
    with pytest.raises(virus_scanner.ScannerAway):
        virus_scanner.scan(io.BytesIO(b"a package"))


def test_one_that_is_not_there_lets_nothing_pass(settings: Any, tmp_path: Any) -> None:
    for where in ("tcp://127.0.0.1:1", f"unix://{tmp_path}/none.ctl"):
        settings.PLUGIN_SCANNER = where
        with pytest.raises(virus_scanner.ScannerAway):
            virus_scanner.scan(io.BytesIO(b"a package"))
