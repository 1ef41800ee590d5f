"""The pytest plugin, run by pytest on files of tests with a fake engine, and `assert_not_worse`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import dspy
import pytest
from fakes import FakeEngine, fake_target

import cuecard
from cuecard.compiler.regression import assert_not_worse
from cuecard.errors import InputError, RunError

from .cli_cases import tickets, write_rows
from .testing_cases import HEAD

pytest_plugins = ["pytester"]

PLUGIN = "cuecard.compiler.pytest_plugin"
HERE = Path(__file__).resolve().parents[1]
TESTS = """\
program: spec.yaml
tests:
  - {name: a refund, tags: [smoke], inputs: {ticket: about billing}, assert: [{type: equals, value: billing}]}
  - {name: a crash, inputs: {ticket: about technical}, assert: [{type: equals, value: billing}]}
  - {name: a call that breaks, inputs: {ticket: break about billing}, assert: [{type: equals, value: billing}]}
  - {name: table, cases: cases.csv}
  - {name: quality, data: rows.jsonl, at_least: 0.5}
"""
CASES = "ticket,__expected,__description\nabout account,account,a login\nabout billing,account,a bill\n"
CONFTEST = f"""\
import sys
sys.path.insert(0, {str(HERE)!r})
import pytest
from fakes import FakeEngine, fake_target
from pathlib import Path

def answer(prompt, *_):
    last = prompt.rpartition("Ticket:")[2]
    return f" {{next(q for q in ('billing', 'technical', 'account') if q in last)}}\\n"

def note(batch):
    with open("batches.txt", "a") as file:
        file.write(f"{{len(batch)}}\\n")

ENGINE = FakeEngine(answer, before=note)
ENGINE.failure = lambda request: "too hot" if "break" in ENGINE.tokenizer.text(request.prompt) else None

def pytest_cuecard_target(config, spec):
    with open("opened.txt", "a") as file:
        file.write(f"{{spec and spec.name}}\\n")
    return fake_target(ENGINE)
"""


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with a spec, its tests and an engine; only this plugin is loaded."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    files = {"spec.yaml": HEAD, "triage.tests.yaml": TESTS, "cases.csv": CASES, "conftest.py": CONFTEST}
    for name, text in files.items():
        (pytester.path / name).write_text(text, encoding="utf-8")
    write_rows(pytester.path / "rows.jsonl", tickets("row", 6))
    return pytester


def run(folder: pytest.Pytester, *words: str) -> pytest.RunResult:
    return folder.runpytest_inprocess("-p", PLUGIN, *words)


def batches(folder: pytest.Pytester) -> list[int]:
    noted = folder.path / "batches.txt"
    return [int(line) for line in noted.read_text().split()] if noted.exists() else []


def test_nothing_is_collected_unasked(folder: pytest.Pytester) -> None:
    assert run(folder).ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert run(folder, "--collect-only", "-q", str(folder.path)).ret == pytest.ExitCode.NO_TESTS_COLLECTED
    (folder.path / "other.yaml").write_text("tests: [not, ours]\n")
    said = run(folder, "other.yaml")
    assert said.ret == pytest.ExitCode.USAGE_ERROR and "not found: " in said.stderr.str()


def test_a_named_file_runs_in_one_batch_and_tells_what_differs(folder: pytest.Pytester) -> None:
    said = run(folder, "triage.tests.yaml", "-rfE")
    said.assert_outcomes(passed=3, failed=2, errors=1)
    assert batches(folder) == [10]  # three cases, one of the table that is not among them, six rows
    said.stdout.fnmatch_lines(
        [
            "*ERROR at setup of a call that breaks*",
            "too hot",
            "*_ a crash _*",
            'queue: found "technical", expected equals "billing"',
            "inputs:",
            "  ticket: about technical",
            "queue equals:",
            "  found: technical",
            "  expected: billing",
            "FAILED triage.tests.yaml::a crash - Failed: queue: found*",
        ]
    )
    assert "Traceback" not in said.stdout.str() and "pytest_plugin.py" not in said.stdout.str()
    assert said.ret == pytest.ExitCode.TESTS_FAILED


def test_patterns_of_the_settings(folder: pytest.Pytester) -> None:
    folder.makeini("[pytest]\naddopts = --strict-markers\ncuecard_files = *.tests.yaml\n")
    run(folder).assert_outcomes(passed=3, failed=2, errors=1)
    run(folder, "-m", "not cuecard").assert_outcomes(deselected=6)


def test_only_what_is_selected_runs(folder: pytest.Pytester) -> None:
    run(folder, "triage.tests.yaml", "-k", "refund").assert_outcomes(passed=1, deselected=5)
    run(folder, "triage.tests.yaml", "-k", "smoke").assert_outcomes(passed=1, deselected=5)
    run(folder, "triage.tests.yaml::table: a login").assert_outcomes(passed=1)
    assert batches(folder) == [1, 1, 1]


def test_what_failed_last_time(folder: pytest.Pytester) -> None:
    run(folder, "triage.tests.yaml", "-p", "cacheprovider")
    (folder.path / "batches.txt").unlink()
    said = run(folder, "triage.tests.yaml", "--lf")
    said.assert_outcomes(failed=2, errors=1, deselected=3)
    assert batches(folder) == [3]


def test_a_spec_can_be_named(folder: pytest.Pytester) -> None:
    (folder.path / "spec.yaml").write_text(HEAD + "tests:\n" + "\n".join(TESTS.splitlines()[2:4]) + "\n")
    run(folder, "spec.yaml").assert_outcomes(passed=1, failed=1)


def test_junit_tells_errors_from_failures(folder: pytest.Pytester) -> None:
    run(folder, "triage.tests.yaml", "--junitxml", "out.xml")
    cases = {case.get("name"): case for case in ElementTree.parse(folder.path / "out.xml").iter("testcase")}
    assert {name: [part.tag for part in case if part.tag != "properties"] for name, case in cases.items()} == {
        "a refund": [],
        "a crash": ["failure"],
        "a call that breaks": ["error"],
        "table: a login": [],
        "table: a bill": ["failure"],
        "quality": [],
    }
    assert cases["a refund"].find("properties/property").attrib == {"name": "score", "value": "1.0"}  # type: ignore[union-attr]


@pytest.mark.parametrize(("way", "sizes"), [("loadfile", [10]), ("load", [1, 1, 1, 1, 1, 6])])
def test_a_worker(folder: pytest.Pytester, way: str, sizes: list[int]) -> None:
    """One worker is enough: it is told no more of the others than which tests it has to run."""
    said = folder.runpytest_subprocess("-p", "xdist", "-p", PLUGIN, "-n", "1", "--dist", way, "triage.tests.yaml")
    said.assert_outcomes(passed=3, failed=2, errors=1)
    assert sorted(batches(folder)) == sizes


def test_what_is_wrong_with_a_file_is_told_without_a_traceback(folder: pytest.Pytester) -> None:
    (folder.path / "triage.tests.yaml").write_text(TESTS.replace("equals", "equal", 1))
    said = run(folder, "triage.tests.yaml")
    said.assert_outcomes(errors=1)
    said.stdout.fnmatch_lines(["*triage.tests.yaml:3: tests[[]0].assert[[]0].type: there is no assertion 'equal'*"])
    assert "Traceback" not in said.stdout.str() and said.ret == pytest.ExitCode.INTERRUPTED
    assert batches(folder) == []


def test_a_model_that_is_not_there_is_an_error_of_every_test(folder: pytest.Pytester) -> None:
    (folder.path / "conftest.py").write_text("")
    said = run(folder, "triage.tests.yaml", "--cuecard-model", "no-such-model", "-k", "refund or crash")
    said.assert_outcomes(errors=2, deselected=4)
    said.stdout.fnmatch_lines(["*no-such-model*"])


def test_baselines_are_written_on_request(folder: pytest.Pytester) -> None:
    (folder.path / "triage.tests.yaml").write_text(TESTS.replace("at_least: 0.5", "baseline: base.json"))
    assert run(folder, "triage.tests.yaml", "-k", "quality").ret == pytest.ExitCode.INTERRUPTED
    run(folder, "triage.tests.yaml", "-k", "quality", "--cuecard-update-baseline").assert_outcomes(
        passed=1, deselected=5
    )
    assert len(json.loads((folder.path / "base.json").read_text())["rows"]) == 6
    run(folder, "triage.tests.yaml", "-k", "quality").assert_outcomes(passed=1, deselected=5)


def test_fixtures(folder: pytest.Pytester) -> None:
    deeper = folder.path / "deeper"
    deeper.mkdir()
    (deeper / "test_program.py").write_text(
        "from cuecard.compiler.regression import assert_not_worse\n"
        "def test_it(cuecard_load, cuecard_target):\n"
        "    program = cuecard_load('../spec.yaml')\n"
        "    assert program(ticket='about account').queue == 'account'\n"
        "    assert cuecard_target.engine.identity == 'fake'\n"
        "def test_past(cuecard_load, tmp_path):\n"
        "    program, base = cuecard_load('../spec.yaml'), tmp_path / 'base.json'\n"
        "    rows = 'rows.jsonl'\n"
        "    assert assert_not_worse(program, rows, 'exact_match', baseline=base, update=True) is None\n"
        "    assert assert_not_worse(program, rows, 'exact_match', baseline=base).matched == 6\n"
    )
    run(folder, "deeper").assert_outcomes(passed=2)
    assert (folder.path / "opened.txt").read_text() == "None\n"  # once, for the fixture and a spec that names no model


def test_the_plugin_alone_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "test_light.py").write_text(
        "import sys\ndef test_it():\n    assert not {'torch', 'dspy', 'transformers', 'scipy', 'numpy'} & set(sys.modules)\n"
    )
    words = [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, "-p", "no:cacheprovider", str(tmp_path)]
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": ""}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- assert_not_worse


class Route(dspy.Module):
    def __init__(self) -> None:
        self.route = dspy.Predict(cuecard.signature("ticket -> queue: Literal['billing', 'technical', 'account']"))

    def forward(self, ticket: str) -> dspy.Prediction:
        return self.route(ticket=ticket)


def examples(count: int) -> list[dspy.Example]:
    return [dspy.Example(**row).with_inputs("ticket") for row in tickets("row", count)]


def marked(text: str) -> FakeEngine:
    """An engine that answers in DSPy's own format, `text` or (empty) what the ticket names."""

    def say(prompt: str, *rest: object) -> str:
        ticket = prompt.rpartition("[[ ## ticket ## ]]")[2].partition("Respond")[0]
        said = text or next(queue for queue in ("billing", "technical", "account") if queue in ticket)
        return f"[[ ## queue ## ]]\n{said}\n\n[[ ## completed ## ]]"

    return FakeEngine(say)


def test_a_python_program_against_its_past(tmp_path: Path) -> None:
    base, rows = tmp_path / "base.json", examples(30)
    good, bad = fake_target(marked("")), fake_target(marked("billing"))
    assert assert_not_worse(Route(), rows, "exact_match", baseline=base, update=True, target=good) is None
    found = assert_not_worse(Route(), rows, "exact_match", baseline=base, target=good)
    assert found is not None and (found.score.value, found.matched) == (1.0, 30)
    with pytest.raises(AssertionError) as told:
        assert_not_worse(Route(), rows, "exact_match", baseline=base, target=bad)
    lines = str(told.value).splitlines()
    assert lines[0].startswith("exact_match is worse than the baseline: -0.667 [")
    assert lines[2:6] == [
        "example 2: 1.000 before, 0.000 now",
        "  input ticket: row 1: about technical",
        "  found queue: billing",
        "  expected queue: technical",
    ]
    assert lines[-1] == "and 15 more"
    assert assert_not_worse(Route(), rows, "exact_match", baseline=base, target=bad, tolerance=0.9) is not None


def test_the_program_s_own_target(tmp_path: Path) -> None:
    base, program = tmp_path / "base.json", Route()
    with pytest.raises(InputError, match="the program has no Cuecard target"):
        assert_not_worse(program, examples(4), "exact_match", baseline=base, update=True)
    program.set_lm(fake_target(marked("")).lm)
    assert_not_worse(program, examples(4), "exact_match", baseline=base, update=True)
    assert program.route.lm is not None and len(json.loads(base.read_text())["rows"]) == 4
    with dspy.context(lm=fake_target(marked("")).lm):
        assert assert_not_worse(Route(), examples(4), "exact_match", baseline=base) is not None


def test_what_cannot_be_compared_is_no_verdict(tmp_path: Path) -> None:
    base, made = tmp_path / "base.json", marked("")
    target = fake_target(made)
    with pytest.raises(InputError, match=r"base\.json: baseline: no such file\n  Write it with update=True"):
        assert_not_worse(Route(), examples(4), "exact_match", baseline=base, target=target)
    assert made.batches == []
    assert_not_worse(Route(), examples(4), "exact_match", baseline=base, update=True, target=target)
    with pytest.raises(InputError, match=r"base\.json: baseline: the baseline holds scores of 'exact_match'"):
        assert_not_worse(Route(), examples(4), "f1", baseline=base, target=target)
    made.failure = lambda request: "too hot"
    with pytest.raises(RunError, match="4 of 4 examples could not be run\n  The first failure: too hot"):
        assert_not_worse(Route(), examples(4), "exact_match", baseline=base, target=target)
