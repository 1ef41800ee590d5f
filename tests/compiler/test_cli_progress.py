"""What a compile says while it runs: plain lines, and the bar."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from cuecard.compiler.cli import progress
from cuecard.compiler.cli.progress import Bar, Lines, counting, reporting, working
from cuecard.compiler.cli.screen import bytes_text, clock_text, columns, counted, one_line, short_path
from cuecard.compiler.task import Reporter
from cuecard.models.engine import Description
from cuecard.optimizers.base import Budget, Candidate, Trial
from cuecard.optimizers.storages import address_of

ABOUT = Description(name="tiny", identity="x", device="cpu", dtype="float32", parameters=1, context_window=64)
TASK: Any = SimpleNamespace(
    name="triage",
    target=SimpleNamespace(description=ABOUT),
    metric=SimpleNamespace(name="f1"),
    train=(),
    dev=range(8),
    test=range(6),
    budget=Budget(100, 60.0),
    seed=3,
    study=None,
)


def folder(resumed: bool) -> Any:
    return SimpleNamespace(path=Path("runs/triage-1"), resumed=resumed)


def trial(number: int, score: float, *, best: bool, unread: int = 0) -> Trial:
    return Trial(number, {}, Candidate({}), "complete", 8, score, score, unread, best=best)


def tell(reporter: Reporter, *, resumed: bool = False) -> None:
    reporter.begin(TASK, folder(resumed), 1200)
    reporter.phase("baseline", 0.0)
    reporter.runs(8, 2.0)
    reporter.trial(trial(0, 0.25, best=True, unread=2), 0.08, 2.0)
    reporter.phase("search", 0.08)
    reporter.runs(50, 20.0)
    reporter.trial(trial(1, 0.1, best=False), 0.5, 20.0)
    reporter.trial(trial(2, 0.75, best=True), 0.6, 30.0)
    reporter.phase("test", 1.0)


LINES = [
    "triage on tiny (float32, cpu)",
    "examples 8 dev, 6 test; budget 100 metric calls or 60 seconds; seed 3",
    "run runs/triage-1",
    "baseline: running the program as written on dev (0% of the budget spent)",
    "  baseline: f1 0.250 on dev, 2 answers unread (8% of the budget spent)",
    "search: searching (8% of the budget spent)",
    "  trial 2 is the best so far: f1 0.750 on dev (60% of the budget spent)",
    "test: scoring baseline and winner on test (100% of the budget spent)",
]


def test_plain_lines_are_one_per_phase_and_one_per_new_best() -> None:
    lines: list[str] = []
    tell(Lines(lines.append))
    assert lines == LINES


def test_a_resumed_run_says_what_it_has() -> None:
    lines: list[str] = []
    tell(Lines(lines.append), resumed=True)
    assert lines[2] == "resuming the run runs/triage-1, which has 1,200 recorded model calls"
    assert lines[:2] + lines[3:] == LINES[:2] + LINES[3:]


def test_what_the_engine_does_not_do_is_said_once() -> None:
    lines: list[str] = []
    about = replace(ABOUT, extra={"notice": "tiny shares no prefixes"})
    task = SimpleNamespace(**{**vars(TASK), "target": SimpleNamespace(description=about)})
    Lines(lines.append).begin(task, folder(False), 0)
    assert lines == [LINES[0], "note: tiny shares no prefixes", *LINES[1:3]]


def test_a_shared_study_is_named_without_its_password() -> None:
    lines: list[str] = []
    task = SimpleNamespace(**{**vars(TASK), "study": address_of("postgresql://anna:secret@host/studies")})
    Lines(lines.append).begin(task, folder(False), 0)
    assert [line for line in lines if "study" in line] == [
        "study postgresql://anna:***@host/studies, with what other processes tell there"
    ]


@pytest.mark.parametrize("quiet", [True, False])
def test_without_a_terminal_there_are_plain_lines(capsys: pytest.CaptureFixture[str], quiet: bool) -> None:
    with reporting(quiet=quiet) as reporter:
        tell(reporter)
    assert capsys.readouterr() == ("", "".join(f"{line}\n" for line in LINES))
    with counting("running", 3) as observer, working("opening") as say:
        assert observer is None
        say("a step")
    assert capsys.readouterr() == ("", "a step\n")


def test_the_bar_shows_phase_share_best_score_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.time, "monotonic", lambda: 1000.0)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None, legacy_windows=False)
    with progress._bar("{task.fields[best]}", progress._time_left) as made:
        bar = Progress(*made.columns, console=console, auto_refresh=False)

    def row() -> str:
        (table,) = bar.get_renderables()
        with console.capture() as captured:
            console.print(table)
        return " ".join(word for word in captured.get().split() if not set(word) <= set("━╸╺"))

    reporter = Bar(bar)
    reporter.begin(TASK, folder(False), 0)
    reporter.phase("search", 0.08)
    reporter.runs(50, 20.0)
    reporter.trial(trial(2, 0.75, best=True), 0.5, 20.0)
    assert row() == "search 50% best f1 0.750 0:25 left"  # 62 runs at 0.4 seconds each, two programs on test included
    reporter.phase("test", 1.0)
    reporter.runs(53, 21.2)
    assert row() == "test 25% best f1 0.750 0:04 left"
    assert "trial 2 is the best so far: f1 0.750" in screen.getvalue()


def test_numbers_as_people_read_them() -> None:
    assert [clock_text(seconds) for seconds in (-1, 7.4, 754, 3723)] == ["0:00", "0:07", "12:34", "1:02:03"]
    assert [bytes_text(size) for size in (0, 999, 1000, 269_030_016, 7e12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "269 MB",
        "7 TB",
    ]
    assert [counted(1, "test"), counted(1200, "test")] == ["1 test", "1,200 tests"]
    assert one_line("two\n lines") == '"two lines"'
    assert len(one_line("x" * 500)) == 102


def test_columns_stand_under_each_other_whatever_the_script() -> None:
    assert columns([("a", "b", "c"), ("日本", "bb")], gap=1) == ["a    b  c", "日本 bb"]


def test_paths_are_shown_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert short_path(tmp_path / "a" / "b") == str(Path("a") / "b")
    assert short_path("/elsewhere/b") == "/elsewhere/b"
