"""Confusable names of plugins, and the order of versions."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.marketplace.names import is_plain_name, is_reserved, skeleton, too_close
from billing.marketplace.permissions import grown
from billing.marketplace.versions import in_range, parse_range, version_key


@pytest.mark.parametrize(
    "name",
    [
        "weekly-rep0rt",
        "weekIy-report",
        "weeklyreport",
        "weekly-reporl",
        "weekly-repotr",
        "weekly-reports",
        "weeky-report",
    ],
)
def test_a_name_that_can_be_taken_for_another_is_too_close(name: str) -> None:
    assert too_close(name, ["other", "weekly-report"]) == "weekly-report"


@pytest.mark.parametrize("name", ["weekly-report", "monthly-report", "weekly", "report", "daily-list"])
def test_other_names_are_free(name: str) -> None:
    assert too_close(name, ["weekly-report"]) is None


def test_short_names_may_differ_by_a_letter() -> None:
    assert too_close("mail", ["main", "maid"]) is None


@pytest.mark.parametrize(
    "name", ["adiuva", "ad1uva", "Adiuva-Tools", "\u0430diuva", "0fficial", "Support", "adluva"]
)
def test_names_that_speak_for_us_are_reserved(name: str) -> None:
    assert is_reserved(name)


@pytest.mark.parametrize(
    "name",
    [
        "Weekly report",
        "W\xf6chentlicher Bericht",
        "\u041e\u0442\u0447\u0451\u0442 2",
        "\u9031\u5831\u306e\u307e\u3068\u3081",
        "A & B (free)",
    ],
)
def test_names_in_one_script_are_plain(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize(
    "name", ["W\u0435ekly", "a\u200bb", "a\u202eb", "u\u0308ber", "<b>", "a\nb", "\U0001f600"]
)
def test_names_that_hide_something_are_not(name: str) -> None:
    assert not is_plain_name(name)


@given(st.text(max_size=30))
def test_a_skeleton_is_its_own_skeleton_of_letters_and_digits(name: str) -> None:
    made = skeleton(name)
    assert all(sign.isalnum() for sign in made)
    assert too_close(name, [name]) is None


def test_versions_are_ordered_as_the_standard_says() -> None:
    order = [
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
    ]
    order += ["1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0"]
    assert all(version_key(a) < version_key(b) for a, b in itertools.pairwise(order))
    assert version_key("1.0.0+a") == version_key("1.0.0+b")


@pytest.mark.parametrize(
    "version", ["1", "1.2", "01.2.3", "1.2.3-", "1.2.3-01", "v1.2.3", "1.2.3 ", "\u0661.2.3", ""]
)
def test_what_is_no_version_is_refused(version: str) -> None:
    with pytest.raises(ValueError, match="version"):
        version_key(version)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (">=1.0.0 <2.0.0", ["1.0.0", "1.9.9"], ["0.9.9", "2.0.0"]),
        ("^1.2.0", ["1.2.0", "1.99.0"], ["1.1.9", "2.0.0", "1.2.0-rc.1"]),
        ("^0.2.1", ["0.2.1", "0.2.9"], ["0.3.0", "0.2.0"]),
        ("~1.2.3", ["1.2.3", "1.2.9"], ["1.3.0", "1.2.2"]),
        ("1.2.3", ["1.2.3", "1.2.3+build"], ["1.2.4"]),
    ],
)
def test_ranges(text: str, inside: list[str], outside: list[str]) -> None:
    assert all(in_range(version, text) for version in inside)
    assert not any(in_range(version, text) for version in outside)


@pytest.mark.parametrize("text", ["", "*", ">=1", "latest", "1.0.0 || 2.0.0", "1.0.0 " * 5])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a (range|version) is"):
        parse_range(text)


def test_only_what_is_asked_for_anew_is_growth() -> None:
    assert grown(["tasks.read", "network"], ["tasks.read", "tasks.write"]) == ["tasks.write"]
