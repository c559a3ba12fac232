"""The runner of the benches: its table, its JSON, what it compares, and what it makes of a bench that fails."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import __main__ as runner
from bench import report as reports
from bench.harness import record
from bench.plot import svg
from bench.report import Report, Result, change, newest_earlier, table
from bench.rows import ROWS_FILE, Aim, Figure, Row, number, read_rows

BENCH = Path(runner.__file__).parent
FACTS = {"date": "20261129T120000Z", "commit": "abc1234", "changed": False, "python": "3.11.7"}
FACTS |= {"system": "Linux x86_64", "cores": 2, "load": 0.1}

STEADY = """
from bench.harness import record
record("CPU of a word", [40.0, 42.0, 41.0], "µs", beside=[80.0, 84.0, 82.0], name="a bare socket", ratio_most=1.0)
record("lost", 0, most=0)
"""
FAILING = STEADY + "raise SystemExit(3)\n"
HANGING = """
import pathlib, time
try:
    pathlib.Path(__file__).with_name("begun").touch()
    time.sleep(60)
finally:
    pathlib.Path(__file__).with_name("cleaned_up").touch()
"""


@pytest.fixture
def benches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of benches of the test's own."""
    folder = tmp_path / "sample_benches"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for name, text in (("steady", STEADY), ("failing", FAILING), ("hanging", HANGING), ("silent", "")):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return folder


def row(ours: list[float], beside: list[float] | None = None, aim: Aim | None = None) -> Row:
    ratio = Figure.of([a / b for a, b in zip(ours, beside, strict=True)]) if beside else None
    return Row("CPU", Figure.of(ours), "ms", Figure.of(beside) if beside else None, "theirs", ratio, aim)


def report(*results: Result, date: str = "20261129T120000Z", form: str = "quick") -> Report:
    return Report(form, FACTS | {"date": date}, list(results))


def lines(of: Report, earlier: reports.Earlier | None = None) -> str:
    return "\n".join(table(of, earlier or {}))


# ── Rows ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_recorded_figure_is_printed_and_becomes_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ROWS_FILE, str(tmp_path / "rows"))
    record("GET", [2.0, 3.0, 10.0], "ms", beside=[4.0, 4.0, 10.0], name="Django", ratio_most=1.5)
    said = capsys.readouterr().out
    assert "3 ms" in said and "Django: 4 ms; ratio: 0.75; aim: ≤ 1.5 times" in said
    (found,) = read_rows(tmp_path / "rows")
    assert found.ours == Figure(3.0, 2.0, 10.0, 3)
    assert found.ratio == Figure(0.75, 0.5, 1.0, 3), "turn by turn: what slows both cancels out"
    assert found.holds is True


def test_without_a_runner_a_figure_is_only_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROWS_FILE, raising=False)
    record("lost", 0, most=0)


def test_the_ratio_of_unequal_turns_has_the_widest_spread_that_they_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ROWS_FILE, str(tmp_path / "rows"))
    record("with fewer beside it", [2.0, 3.0, 4.0], beside=[1.0, 2.0])
    record("beside nothing", 5.0, beside=0.0, ratio_most=1)
    fewer, nothing = read_rows(tmp_path / "rows")
    assert fewer.ratio == Figure(2.0, 1.0, 4.0, 2)
    assert nothing.ratio is None and nothing.holds is False, "an aim that cannot be judged is not reached"


@pytest.mark.parametrize(
    ("aim", "said", "reached", "missed"),
    [
        (Aim(most=0), "0 ms", 0, 1),
        (Aim(most=1.2), "≤ 1.2 ms", 1.2, 1.21),
        (Aim(least=4_000), "≥ 4,000 ms", 4_000, 3_999),
        (Aim(least=184, most=216), "184 to 216 ms", 200, 217),
        (Aim(least=100, most=100), "100 ms", 100, 99),
        (Aim(most=1.5, of_ratio=True), "≤ 1.5 times", 1.5, 2),
    ],
)
def test_an_aim_says_its_bounds_and_whether_they_hold(
    aim: Aim, said: str, reached: float, missed: float
) -> None:
    assert aim.text("ms") == said
    assert aim.holds(reached) and not aim.holds(missed)


def test_figures_are_short() -> None:
    given = (0, 3.0, 0.0283, 0.456, 4.567, 45.67, 456.7, 45_670.2)
    assert [number(each) for each in given] == ["0", "3", "0.028", "0.46", "4.57", "45.7", "457", "45,670"]


# ── The table and its JSON ──────────────────────────────────────────────────────────────────────────────


def test_the_table_has_a_line_for_each_row() -> None:
    seen = report(
        Result("rest", 12.3, [row([1.0, 1.2], [2.0, 2.4], Aim(most=0.4, of_ratio=True))]),
        Result("orders", 1, [], "exit code 1"),
        Result("local_model", 0, []),
    )
    head, bench, figures, *rest = lines(seen).splitlines()
    assert head.split() == ["ours", "beside", "ratio", "aim", "holds", "change"]
    assert bench == "rest (12 s)"
    assert " ".join(figures.split()) == "CPU 1.10 ms 2.20 ms (theirs) 0.50 ≤ 0.4 times NO"
    assert rest == ["orders (1 s)", "  FAILED: exit code 1", "local_model (0 s)", "  no figures"]


def test_figures_come_back_from_json_as_they_were(tmp_path: Path) -> None:
    whole = report(
        Result("rest", 12.3, [row([1.0, 1.2, 1.1], [2.0, 2.4, 2.2], Aim(most=1.5, of_ratio=True))]),
        Result("orders", 2.0, [row([1.0])], "exit code 1"),
    )
    file = tmp_path / "new folder" / "a.json"
    whole.write(file)
    assert Report.read(file) == whole


def test_json_names_neither_the_machine_nor_its_folders(tmp_path: Path) -> None:
    facts = reports.machine_facts()
    assert facts.keys() == FACTS.keys()
    assert re.fullmatch(r"\d{8}T\d{6}Z", facts["date"])
    assert not any("/" in str(fact) for fact in facts.values())


# ── Changes ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("now", "then", "aim", "said"),
    [
        ([1.0, 1.1, 1.2], [1.0, 1.1, 1.2], None, "none"),
        ([1.1, 1.2, 1.3], [1.0, 1.1, 1.3], Aim(most=2), "+9%"),
        ([2.0, 2.1, 2.2], [1.0, 1.1, 1.2], Aim(most=2), "+91% worse"),
        ([2.0, 2.1, 2.2], [1.0, 1.1, 1.2], Aim(least=2), "+91% better"),
        ([1.0, 1.1, 1.2], [2.0, 2.1, 2.2], Aim(most=2), "-48% better"),
        ([2.0, 2.1, 2.2], [1.0, 1.1, 1.2], None, "+91% *"),
        ([2.0], [1.0], Aim(most=2), "+100%"),
        ([0.0], [0.0], Aim(most=0), "none"),
        ([3.0], [0.0], Aim(most=0), "was 0"),
    ],
)
def test_a_change_is_marked_where_it_is_more_than_the_turns_are_apart(
    now: list[float], then: list[float], aim: Aim | None, said: str
) -> None:
    assert change(row(now, aim=aim), row(then, aim=aim)) == said


def test_the_ratio_is_what_is_compared() -> None:
    slow_machine, fast_machine = row([4.0, 4.0], [8.0, 8.0]), row([1.0, 1.0], [2.0, 2.0])
    assert change(slow_machine, fast_machine) == "none"
    assert change(slow_machine, row([4.0, 4.0])) == "new", "which was compared with nothing"
    assert change(slow_machine, None) == "new"


def test_each_bench_is_compared_with_the_newest_of_its_form_that_did_not_fail(tmp_path: Path) -> None:
    for date, form, result in (
        ("20261101T000000Z", "quick", Result("rest", 1, [row([1.0])])),
        ("20261102T000000Z", "quick", Result("rest", 1, [row([2.0])])),
        ("20261103T000000Z", "quick", Result("rest", 1, [row([3.0])], "exit code 1")),
        ("20261104T000000Z", "full", Result("rest", 1, [row([4.0])])),
        ("20261105T000000Z", "quick", Result("vault", 1, [row([5.0])])),
    ):
        made = report(result, date=date, form=form)
        made.write(tmp_path / f"{made.label}.json")
    earlier, labels = newest_earlier(tmp_path, "quick", ["rest", "vault", "orders"])
    assert {key: each.ours.median for key, each in earlier.items()} == {
        ("rest", "CPU"): 2.0,
        ("vault", "CPU"): 5.0,
    }
    assert labels == ["20261105T000000Z-abc1234", "20261102T000000Z-abc1234"]
    assert "+50%" in lines(report(Result("rest", 1, [row([3.0])])), earlier)
    assert newest_earlier(tmp_path, "quick", ["rest"])[1] == ["20261102T000000Z-abc1234"]
    assert newest_earlier(tmp_path / "none", "quick", ["rest"]) == ({}, [])


# ── Running ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_bench_runs_in_a_process_of_its_own_and_gives_its_rows(benches: Path) -> None:
    found = runner.run_bench("sample_benches.steady", [], 60)
    assert not found.failure
    assert [each.what for each in found.rows] == ["CPU of a word", "lost"]
    assert found.rows[0].ratio == Figure(0.5, 0.5, 0.5, 3)


def test_a_bench_that_fails_keeps_the_rows_it_had(benches: Path) -> None:
    found = runner.run_bench("sample_benches.failing", [], 60)
    assert (found.failure, len(found.rows)) == ("exit code 3", 2)


def test_a_bench_that_hangs_is_ended(benches: Path) -> None:
    found = runner.run_bench("sample_benches.hanging", [], 5)
    assert found.failure == "not done after 5 s"
    assert (benches / "cleaned_up").exists()


def test_a_bench_cleans_up_and_ends_when_its_runner_is_killed(benches: Path) -> None:
    given = "from bench.__main__ import run_bench; run_bench('sample_benches.hanging', [], 60)"
    with subprocess.Popen([sys.executable, "-c", given], cwd=BENCH.parent) as started:
        _wait_for(benches / "begun")
        started.kill()
    _wait_for(benches / "cleaned_up")


def _wait_for(file: Path) -> None:
    until = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < until, f"{file.name} does not come"
        time.sleep(0.05)


@pytest.mark.parametrize(("failure", "code"), [("", 0), ("exit code 1", 1)])
def test_the_table_comes_and_all_is_written_also_if_one_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failure: str, code: int
) -> None:
    whole = report(Result("rest", 1, [row([1.0], aim=Aim(most=2))]), Result("vault", 1, [], failure))
    assert runner.publish(whole, tmp_path / "x.json", {}, []) == code
    assert Report.read(tmp_path / "x.json") == whole
    assert "rest (1 s)" in capsys.readouterr().out
    for name in ("rest", "vault"):
        ET.parse(tmp_path / "x" / f"{name}.svg")


def test_it_compares_with_the_file_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(Result("rest", 1, [row([2.0])])).write(tmp_path / "old.json")
    earlier = runner.find_earlier(tmp_path / "old.json", "quick", ["rest"])
    runner.publish(report(Result("rest", 1, [row([1.0])])), tmp_path / "new.json", *earlier)
    said = capsys.readouterr().out
    assert "-50%" in said and "Change since 20261129T120000Z-abc1234" in said


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"benches": {"rest": 1}}'])
def test_a_file_that_cannot_be_compared_with_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "old.json").write_text(text)
    monkeypatch.setattr(runner, "run_bench", lambda *given: pytest.fail("it ran"))
    monkeypatch.setattr("sys.argv", ["bench", "rest", "--compare", str(tmp_path / "old.json")])
    with pytest.raises(SystemExit):
        runner.main()
    assert "old.json holds no figures of benches" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["quick", "full"])
def test_the_forms_differ_in_benches_and_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    ran: dict[str, list[str]] = {}

    def run_bench(module: str, arguments: list[str], limit_s: float) -> Result:
        ran[module] = list(arguments)
        return Result(module, 1, [])

    monkeypatch.setattr(runner, "run_bench", run_bench)
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["bench", f"--{form}"])
    assert runner.main() == 0
    assert "bench.rest" in ran
    assert ("bench.orders" in ran) == (form == "full"), "which has no quick form"
    assert ran["bench.devices"] == (["500"] if form == "quick" else [])
    (file,) = tmp_path.glob("*.json")
    assert Report.read(file).form == form


def test_a_bench_without_a_quick_form_runs_when_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    monkeypatch.setattr(
        runner, "run_bench", lambda module, *given: ran.append(module) or Result(module, 1, [])
    )
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["bench", "orders"])
    assert runner.main() == 0
    assert ran == ["bench.orders"]


def test_a_plot_shows_shares_of_the_aim_or_of_what_is_beside() -> None:
    drawn = svg(
        'A <bench> & "its" rows',
        [
            row([1.0], aim=Aim(most=2)),
            row([9.0], [2.0]),
            row([1.0]),
            row([0.0], aim=Aim(most=0)),
            row([3.0, 4.0], aim=Aim(least=2)),
        ],
    )
    space = "{http://www.w3.org/2000/svg}"
    root = ET.fromstring(drawn)
    bars = [float(each.attrib["width"]) for each in root.iter(f"{space}rect") if "y" in each.attrib]
    assert bars == [90.0, 360.0, 315.0], "half of the aim; cut at twice of it; 1.75 times the aim"
    assert len(list(root.iter(f"{space}path"))) == 2, "the line, and the spread of the bar with two turns"


# ── All benches ─────────────────────────────────────────────────────────────────────────────────────────


def programs() -> set[str]:
    """The modules of bench/ that can be started, but for the runner."""
    return {
        path.stem
        for path in BENCH.glob("*.py")
        if path.stem != "__main__" and '"__main__"' in path.read_text()
    }


def test_the_runner_knows_each_bench() -> None:
    known = {name for name in runner.BENCHES if not name.startswith("chaos")}
    assert known == programs()


@pytest.mark.parametrize("name", sorted(programs()))
def test_each_bench_gives_rows_or_says_why_it_only_checks(name: str) -> None:
    text = (BENCH / f"{name}.py").read_text()
    parts = [
        BENCH.joinpath(*part.split(".")).with_suffix(".py").read_text()
        for part in re.findall(r"from bench\.(\w+\.\w+) import", text)
    ]
    says = "A check, not a measure" in (ast.get_docstring(ast.parse(text)) or "")
    assert says or any(_records(each) for each in [text, *parts])


def _records(text: str) -> bool:
    calls = [each.func for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Call)]
    return any(isinstance(called, ast.Name) and called.id == "record" for called in calls)
