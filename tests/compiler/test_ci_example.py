"""The workflow in `examples/ci`: its YAML, and its commands on a fake engine, as they stand in the file."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import FakeEngine, fake_target

import cuecard
from cuecard.compiler.testing import read_suite

from .cli_cases import cuecard as command

ROOT = Path(cuecard.__file__).parent
EXAMPLE = ROOT / "examples" / "ci"
WORDS = {
    "delivery": ("parcel", "courier", "deliver", "delivery"),
    "payment": ("charged", "pay", "payment", "invoice", "amount"),
    "returns": ("back", "return", "swap"),
}


@pytest.fixture
def workflow() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((EXAMPLE / "prompts.yml").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository laid out as the example says; the working folder."""
    for name in ("prompts", "requirements.txt"):
        (shutil.copytree if (EXAMPLE / name).is_dir() else shutil.copy)(EXAMPLE / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def likelihood(prompt: str, continuation: str) -> float:
    """The topic whose words the message holds."""
    message = set(re.findall(r"\w+", prompt.rpartition("Message:")[2].lower()))
    return next((2.0 * len(message & set(words)) for topic, words in WORDS.items() if topic in continuation), 0.0) - 9


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = workflow["jobs"]["test"]["steps"]
    return found


def step(workflow: dict[str, Any], text: str) -> dict[str, Any]:
    """The only step that runs or uses something with this text."""
    (found,) = [each for each in steps(workflow) if text in each.get("run", "") + each.get("uses", "")]
    return found


def run(text: str, capsys: pytest.CaptureFixture[str], summary: Path) -> int:
    """Run a step: the command line in this process, anything else in a shell."""
    words = shlex.split(text, comments=True)
    if words[0] == "cuecard":
        return command(capsys, *words[1:]).code
    environment = {**os.environ, "GITHUB_STEP_SUMMARY": str(summary)}
    return subprocess.run(["bash", "-e", "-c", text], env=environment, check=False).returncode


def test_the_page_shows_the_file(workflow: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    assert f"```yaml\n{(EXAMPLE / 'prompts.yml').read_text(encoding='utf-8')}```\n" in page
    assert "(../examples/ci/prompts.yml)" in page


def test_the_steps_are_in_their_order_and_fit_each_other(workflow: dict[str, Any]) -> None:
    assert list(workflow) == ["name", True, "permissions", "jobs"]  # YAML reads `on` as true, and GitHub knows
    assert workflow[True]["pull_request"]["paths"][-1] == (EXAMPLE / "prompts.yml").read_text().split()[1]
    marks = [
        "actions/checkout",
        "pip install",
        "actions/cache",
        "models pull",
        "cuecard test",
        "STEP_SUMMARY",
        "upload",
    ]
    places = [steps(workflow).index(step(workflow, mark)) for mark in marks]
    assert places == sorted(places)
    assert all(re.search(r"@v\d+$", each["uses"]) for each in steps(workflow) if "uses" in each)
    assert all("run" in each or "uses" in each for each in steps(workflow))
    model = step(workflow, "models pull")["run"].split()[3]
    cached = step(workflow, "actions/cache")["with"]
    assert workflow["jobs"]["test"]["env"]["CUECARD_HOME"].endswith(f"/{cached['path']}")
    assert model in cached["key"]
    assert model == read_suite(EXAMPLE / "prompts" / "inbox.tests.yaml").spec.model.id  # type: ignore[union-attr]
    after = steps(workflow)[places[marks.index("cuecard test")] + 1 :]
    assert len(after) == 3 and all("!cancelled()" in each["if"] for each in after)
    written = re.findall(r"--(?:junit|markdown|html) (\S+)", step(workflow, "cuecard test")["run"])
    kept = step(workflow, "upload-artifact")["with"]["path"]
    assert len(written) == 3 and all(fnmatch.fnmatch(name, kept) for name in written)


@pytest.mark.parametrize(("good", "code"), [(True, 0), (False, 1)])
def test_its_commands_run(
    workflow: dict[str, Any],
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    good: bool,
    code: int,
) -> None:
    engine = FakeEngine(likelihood=likelihood) if good else FakeEngine()
    pulled: list[str] = []
    monkeypatch.setattr("cuecard.compiler.cli.test.open_target", lambda *_: fake_target(engine))
    monkeypatch.setattr("cuecard.models.pull.pull", lambda name, **_: pulled.append(name))
    summary = checkout / "summary.md"
    assert run(step(workflow, "models pull")["run"], capsys, summary) == 0
    assert pulled == ["smollm2-135m"]
    assert run(step(workflow, "cuecard test")["run"], capsys, summary) == code
    assert run(step(workflow, "STEP_SUMMARY")["run"], capsys, summary) == 0
    assert summary.read_bytes() == Path("results.md").read_bytes()
    assert "most messages are sorted right" in summary.read_text(encoding="utf-8")
    cases = list(ElementTree.parse("results.xml").iter("testcase"))
    assert len(cases) == 2
    assert any(list(case.iter("failure")) for case in cases) is not good


def test_without_results_there_is_no_summary(
    workflow: dict[str, Any], checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(step(workflow, "STEP_SUMMARY")["run"], capsys, checkout / "summary.md") == 0
    assert not (checkout / "summary.md").exists()


def test_the_examples_rows_are_all_right_for_one_who_reads() -> None:
    suite = read_suite(EXAMPLE / "prompts" / "inbox.tests.yaml")
    rows = suite.tests[1].rows
    assert len({row.inputs["message"] for row in rows}) == len(rows) == 24
    assert {row.labels["topic"] for row in rows} == set(WORDS)
