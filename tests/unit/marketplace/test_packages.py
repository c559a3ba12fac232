"""Hostile packages are refused by the check that is there for it, honest ones pass, and nothing brings a check down."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.marketplace import checks
from billing.marketplace.checks import Report, Result, check_package
from billing.marketplace.findings import MAX_FINDINGS, Finding, Severity
from billing.marketplace.manifest import Manifest
from billing.marketplace.package import PackageFile
from tests.unit.marketplace.packages import CODE, HONEST, HOSTILE, TOKEN, code, pack, readme


def checked(raw: bytes) -> Report:
    return check_package(io.BytesIO(raw))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_package_is_refused_by_the_check_that_is_there_for_it(name: str) -> None:
    check, make = HOSTILE[name]
    report = checked(make())
    assert not report.passed
    assert check in {finding.check for finding in report.findings if finding.severity == Severity.BLOCKS}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_package_passes(name: str) -> None:
    report = checked(HONEST[name]())
    assert report.passed, report.findings
    assert Result.ERROR not in report.results.values()


def test_a_finding_names_the_file_and_the_line_and_never_the_secret() -> None:
    (finding,) = checked(code(f"\nconst token = '{TOKEN}'\n")).findings
    assert (finding.path, finding.line) == ("main.js", CODE.count(b"\n") + 2)
    assert TOKEN not in str(finding.body())
    assert Finding.of_body(finding.body()) == finding


def test_a_host_in_a_text_for_people_is_for_the_reviewer_to_judge() -> None:
    (finding,) = checked(readme("See https://example.org/")).findings
    assert (finding.severity, finding.check) == (Severity.REVIEW, "hosts")


def test_what_blocks_is_not_lost_among_what_is_for_the_reviewer() -> None:
    many = "\n".join(f"https://host{number}.example.org/" for number in range(50))
    assert not checked(readme(f"{many}\nhttps://bit.ly/3xYz")).passed


def test_a_check_that_breaks_lets_nothing_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(manifest: Manifest, file: PackageFile) -> Iterator[Finding]:
        raise OSError("the scanner is away")
        yield

    monkeypatch.setitem(checks._FILE_CHECKS, "secrets", broken)
    report = checked(pack())
    assert report.results["secrets"] == Result.ERROR
    assert not report.passed


def test_findings_are_bounded_and_what_blocks_is_among_them() -> None:
    report = Report(results={})
    for number in range(300):
        report.add("hosts", [Finding("hosts", "x", f"{number}.md", severity=Severity.REVIEW)])
    report.add("code", [Finding("code", "it makes code out of text", "main.js")])
    assert len(report.findings) == MAX_FINDINGS + 1
    assert report.findings[-1].check == "code"


HONEST_RAW = HONEST["licence and data"]()


@given(st.integers(0, len(HONEST_RAW) - 1), st.binary(min_size=1, max_size=8))
def test_a_damaged_package_is_refused_or_says_what_it_said_before(at: int, put: bytes) -> None:
    """Whatever is put where: no traceback; and what still opens has the content that the manifest promises."""
    raw = HONEST_RAW[:at] + put + HONEST_RAW[at + len(put) :]
    report = checked(raw)
    assert Result.ERROR not in report.results.values()
    if report.passed:
        assert report.manifest == checked(HONEST_RAW).manifest


@given(st.binary(max_size=400))
def test_what_is_no_archive_is_refused(raw: bytes) -> None:
    assert not checked(raw).passed
