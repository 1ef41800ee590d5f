"""A compile that shares its study with others: by the Python API, by the command line, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine, WordLearner, compile_tickets, fake_target, spec_folder, tickets

import cuecard
from cuecard.compiler.cli.dry_run import _about, plan_lines
from cuecard.compiler.cli.progress import Lines
from cuecard.compiler.cli.summary import summary
from cuecard.compiler.dry_run import plan_compile
from cuecard.compiler.from_spec import spec_task
from cuecard.compiler.run_folder import open_run
from cuecard.errors import InputError

from .cli_cases import cuecard as run_cli

TESTS = Path(__file__).resolve().parents[1]
KINDS = ("sqlite:///{}/study.db", "{}/study.journal")


class Killed(BaseException):
    """Stands for a kill, within the process: nobody catches it."""


def learner(kill_at: int | None = None) -> FakeEngine:
    def before(batch: Sequence[Any]) -> None:
        if len(engine.batches) == kill_at:
            raise Killed

    engine = WordLearner(bias={"billing": 2.0}).engine(before=before)
    return engine


def state(compiled: cuecard.Compiled) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(compiled.compilation.folder.run.read_text())
    return found


def timeless(compiled: cuecard.Compiled, folder: Path) -> tuple[bytes, Any, Any]:
    """What came of a compile, without how long it took."""
    told = state(compiled)
    told.pop("seconds")
    told["ledger"].pop("seconds")
    trials = [json.loads(line) for line in compiled.compilation.folder.trials.read_text().splitlines()]
    for trial in trials:
        trial.pop("seconds")
    return compiled.write(folder / "x.compiled.yaml").read_bytes(), told, trials


# ---- through the Python API


def test_one_after_the_other(tmp_path: Path) -> None:
    url = KINDS[0].format(tmp_path)
    plain = compile_tickets(tmp_path / "plain")
    first = compile_tickets(tmp_path / "runs", study=url)
    second = compile_tickets(tmp_path / "runs", study=url, budget={"metric_calls": 40})
    assert first.write(tmp_path / "a.yaml").read_bytes() == plain.write(tmp_path / "p.yaml").read_bytes()
    assert "study" not in state(plain)
    trials = first.compilation.result.trials - 1
    assert state(first)["study"] == {"url": url, "process": 1, "others": 0, "left_out": 0}
    assert state(second)["study"] == {"url": url, "process": 2, "others": trials, "left_out": 0}
    assert second.compilation.spent["trials"] == second.compilation.result.trials - trials
    assert second.compilation.folder.path.name == "triage-2"
    lines = [json.loads(line) for line in second.compilation.folder.trials.read_text().splitlines()]
    assert [line.get("process") for line in lines[: trials + 2]] == [None, *[1] * trials, None]
    best = first.compilation.result.best
    assert second.compilation.result.best.score == best.score
    assert second.compilation.candidate.digest == best.candidate.digest, "the first's best, tested here on test"
    told = "\n".join(summary(second.compilation))
    assert f"the best of {second.compilation.result.trials - 1} candidates ({trials} from other processes)." in told


def test_a_killed_run_is_taken_up_and_the_growth_of_the_study_changes_nothing(tmp_path: Path) -> None:
    url, twin = (form.format(tmp_path) for form in KINDS)
    for each in (url, twin):
        compile_tickets(tmp_path / f"first-{each == url}", study=each, budget={"metric_calls": 40})
    engine = learner()
    whole = compile_tickets(tmp_path / "twin", engine, study=twin)
    with pytest.raises(Killed):  # in the last batch, that of the test split
        compile_tickets(tmp_path / "runs", learner(len(engine.batches) - 1), study=url)
    compile_tickets(tmp_path / "other", study=url, budget={"metric_calls": 60})
    again = compile_tickets(tmp_path / "runs", study=url)
    assert again.compilation.folder.resumed and again.compilation.folder.path.name == "triage-1"
    ended, expected = timeless(again, tmp_path), timeless(whole, tmp_path)
    assert ended[0] == expected[0] and ended[2] == expected[2]
    for told in (ended[1], expected[1]):
        told.pop("fingerprint")
        told["study"].pop("url")
    assert ended[1] == expected[1]


def test_the_study_is_part_of_what_a_run_is(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        compile_tickets(tmp_path, learner(5))
    with pytest.raises(Killed):
        compile_tickets(tmp_path, learner(5), study=f"{tmp_path}/a.journal")
    with pytest.raises(Killed):
        compile_tickets(tmp_path, learner(5), study=f"{tmp_path}/b.journal")
    again = compile_tickets(tmp_path, study=f"{tmp_path}/a.journal")
    assert (again.compilation.folder.path.name, again.compilation.folder.resumed) == ("triage-2", True)
    assert (tmp_path / "triage-3").is_dir()


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"seed": 1}, "the seed differ"),
    ({"devset": tickets(12, 9)}, "the train or dev rows differ"),
    ({"metric": "set_f1"}, "the metric differ"),
    ({"search": {"instructions": 1, "demos": [0, 4]}}, "what `search` asks for differ"),
    ({"target": fake_target(WordLearner().engine(identity="another"))}, "the model differ"),
]


def test_another_search_is_refused_before_anything_runs(tmp_path: Path) -> None:
    url = KINDS[1].format(tmp_path)
    compile_tickets(tmp_path / "a", study=url, budget={"metric_calls": 12})
    for changes, told in OTHERS:
        engine = learner()
        with pytest.raises(InputError) as raised:
            compile_tickets(tmp_path / "b", engine, study=url, **changes)
        assert told in str(raised.value) and url in str(raised.value)
        assert not engine.batches and not (tmp_path / "b").exists()
    compile_tickets(tmp_path / "b", study=url, name="another", seed=1, budget={"metric_calls": 12})


def test_test_rows_budgets_and_what_comes_after_may_differ(tmp_path: Path) -> None:
    url = KINDS[1].format(tmp_path)
    compile_tickets(tmp_path, study=url, budget={"metric_calls": 40})
    search = {"instructions": 2, "demos": [0, 4], "recalibrate": False}
    changes: dict[str, Any] = {"testset": tickets(12, 8), "stop": {"score": 0.9}, "search": search}
    other = compile_tickets(tmp_path, study=url, optimizer="random", budget={"metric_calls": 30}, **changes)
    assert state(other)["study"]["others"]


@pytest.mark.parametrize("optimizer", ["bootstrap_random", "mipro"])
def test_other_strategies_share_studies_too(optimizer: str, tmp_path: Path) -> None:
    url = KINDS[1].format(tmp_path)
    first = compile_tickets(tmp_path, study=url, optimizer=optimizer, budget={"metric_calls": 40})
    second = compile_tickets(tmp_path, study=url, optimizer=optimizer, budget={"metric_calls": 12})
    assert state(second)["study"]["others"] == first.compilation.result.trials - 1 > 0


@pytest.mark.parametrize("optimizer", ["copro", "knn_few_shot", "dspy.BootstrapFewShot"])
def test_what_can_not_share_is_refused(optimizer: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't share a study with other processes; expected one of the optimizers"):
        compile_tickets(tmp_path / "runs", study=KINDS[1].format(tmp_path), optimizer=optimizer)
    assert list(tmp_path.iterdir()) == []


# ---- run folders


def test_processes_of_the_same_compile_have_runs_of_their_own(tmp_path: Path) -> None:
    first = open_run(tmp_path, "triage", "a", shared=True)
    with first:
        first.write({"fingerprint": "a", "status": "running"})
        second = open_run(tmp_path, "triage", "a", shared=True)
        assert (second.path.name, second.resumed) == ("triage-2", False)
        with second:
            second.write({"fingerprint": "a", "status": "running"})
    resumed = [open_run(tmp_path, "triage", "a", shared=True) for _ in range(3)]
    assert [folder.path.name for folder in resumed] == ["triage-1", "triage-2", "triage-3"]
    assert [folder.resumed for folder in resumed] == [True, True, False]
    resumed[2].write({"fingerprint": "a", "status": "finished"})
    assert open_run(tmp_path, "triage", "a", shared=True).path.name == "triage-4", "the others are claimed"


def test_a_folder_that_was_made_just_now_is_left_to_its_maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuecard.compiler.run_folder._numbers", lambda root, name: [])
    assert [open_run(tmp_path, "triage", "a", shared=True).path.name for _ in range(2)] == ["triage-1", "triage-2"]


# ---- processes

WORKER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from fakes import compile_tickets
compiled = compile_tickets(Path({runs!r}), study={url!r}, budget={{"metric_calls": 40}})
compiled.write({output!r})
"""


def test_two_processes_at_once(tmp_path: Path) -> None:
    url = KINDS[0].format(tmp_path)
    given = {"tests": str(TESTS), "runs": str(tmp_path / "runs"), "url": url}
    code = [WORKER.format(**given, output=str(tmp_path / f"{n}.yaml")) for n in range(2)]
    work = [subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE, text=True) for text in code]
    assert [(process.communicate()[1], process.returncode) for process in work] == [("", 0), ("", 0)]
    states = [json.loads((tmp_path / "runs" / f"triage-{n}" / "run.json").read_text()) for n in (1, 2)]
    assert {each["study"]["process"] for each in states} == {1, 2}
    assert sum(each["study"]["others"] for each in states), "at least the one that joined later has heard the other"
    assert all(each["status"] == "finished" and not each["study"]["left_out"] for each in states)


# ---- the command line


def spec_task_at(folder: Path, url: str) -> Any:
    return spec_task(folder / "two_steps.yaml", target=fake_target(learner()), study=url)[1]


def test_the_plan_names_the_study_and_makes_none(tmp_path: Path) -> None:
    spec_folder(tmp_path)
    task = spec_task_at(tmp_path, f"sqlite:///{tmp_path}/s.db")
    before = sorted(tmp_path.iterdir())
    lines = list(plan_lines(task, plan_compile(task)))
    assert sorted(tmp_path.iterdir()) == before
    assert any(line.split()[:2] == ["study", f"sqlite:///{tmp_path}/s.db,"] for line in lines)
    assert _about(task)["study"] == f"sqlite:///{tmp_path}/s.db"


def test_what_is_said_while_it_runs(tmp_path: Path) -> None:
    url = KINDS[1].format(tmp_path)
    compile_tickets(tmp_path / "runs", study=url, budget={"metric_calls": 40})
    said: list[str] = []
    compile_tickets(tmp_path / "runs", study=url, budget={"metric_calls": 12}, reporter=Lines(said.append))
    assert f"study {url}, with what other processes tell there" in said
    assert any(line.startswith("  trial 1, of process 1, is the best so far: ") for line in said)


@pytest.mark.parametrize(
    ("url", "code", "told"),
    [
        (
            "study.db",
            2,
            "study: found 'study.db', which is no URL of a study; expected sqlite:///FILE.db, postgresql://",
        ),
        ("sqlite:///no/study.db", 2, "study: there is no folder 'no' for the study\n  Make the folder first"),
        ("nosuch://u:secret@h/d", 2, "study: no database is known by nosuch://u:***@h/d; expected sqlite:///FILE.db"),
        ("spoiled.journal", 2, "study: spoiled.journal holds no study that can be read: "),
        ("/proc/x.journal", 3, "can't read or write the study at /proc/x.journal: "),
    ],
)
def test_a_study_that_can_not_be_opened(
    url: str, code: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec_folder(tmp_path)
    (tmp_path / "spoiled.journal").write_text("hello\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cuecard.compiler.from_spec.spec_target", lambda *_, **__: fake_target(learner()))
    said = run_cli(capsys, "compile", "two_steps.yaml", "--study", url)
    assert said.code == code
    assert told in said.err and "Traceback" not in said.err and "secret" not in said.err
    assert not (tmp_path / ".cuecard").exists()


def test_a_compile_by_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cuecard.compiler.from_spec.spec_target", lambda *_, **__: fake_target(learner()))
    for name in ("a", "b"):
        said = run_cli(capsys, "compile", "two_steps.yaml", "--study", "sqlite:///study.db", "-o", f"{name}.yaml")
        assert said.code == 0, said.err
    assert "from other processes" in said.out
    assert (tmp_path / "study.db").is_file()
    refused = run_cli(capsys, "compile", "two_steps.yaml", "--study", "sqlite:///study.db", "--seed", 5)
    assert refused.code == 2
    assert "the study 'two_steps' at sqlite:///study.db is of another search: the seed differ" in refused.err
