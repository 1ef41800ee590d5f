"""The formats in which the results of tests are told: whole, escaped, and the same every time."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from fakes import fake_target
from hypothesis import given, settings
from hypothesis import strategies as st

from cuecard.compiler.cli import main
from cuecard.compiler.reports import FORMATS
from cuecard.compiler.reports.detail import detail, suite_name
from cuecard.compiler.testing import Check, Report, Result

from .cli_cases import cuecard, tickets, write_rows
from .testing_cases import HEAD, engine

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXPECTED = "The tower stands in Paris. It was built in 1889 by Eiffel. It is 330 metres tall."
FOUND = "The tower stands in Paris. It was built in 1887 by Eiffel. It is 330 metres tall."


def check(type: str = "equals", found: str = "account", expected: str = "billing", **changes: Any) -> Check:
    parts = {"field": "queue", "passed": False, "score": 0.0, "weight": 1.0, "reason": "no", **changes}
    return Check(type=type, found=found, expected=expected, **parts)


def result(name: str = "a refund", status: Any = "pass", **changes: Any) -> Result:
    parts: dict[str, Any] = {
        "reason": "",
        "score": None,
        "checks": (),
        "inputs": {},
        "outputs": None,
        "seconds": 0.25,
        "tags": (),
        "path": "prompts/triage.tests.yaml",
        "line": 3,
        "kind": "case",
    }
    return Result(name=name, status=status, **{**parts, **changes})


FAILED = result(
    "a crash",
    "fail",
    reason='queue: found "account", expected equals "billing"',
    score=0.0,
    checks=(check(),),
    inputs={"ticket": "It <b>crashed</b>\nagain"},
    outputs={"queue": "account"},
    tags=("smoke",),
    line=4,
)
RESULTS = (
    result(score=1.0, inputs={"ticket": "x"}, outputs={"queue": "billing"}),
    FAILED,
    result("a call", "error", reason="too hot", line=5),
    result("is fast", "skip", reason="no time in a replay", path="prompts/cases.csv", line=2),
    result("quality", reason="exact_match 0.583 [0.494, 0.668] on 120 rows, at least 0.5", score=0.583, kind="gate"),
    result("brevity", "fail", reason="f1 is worse than the baseline: -0.1 [-0.2, -0.05]", score=0.4, kind="gate"),
)
REPORT = Report("prompts", "fake", RESULTS, 1.5)


def test_junit() -> None:
    root = ElementTree.fromstring(FORMATS["junit"](REPORT))
    assert (root.tag, root.attrib) == (
        "testsuites",
        {"name": "prompts", "tests": "6", "failures": "2", "errors": "1", "skipped": "1", "time": "1.500"},
    )
    assert [(suite.get("name"), suite.get("tests"), suite.get("time")) for suite in root] == [
        ("prompts/triage.tests.yaml", "5", "1.250"),
        ("prompts/cases.csv", "1", "0.250"),
    ]
    cases = {case.get("name"): case for case in root.iter("testcase")}
    crash = cases["a crash"]
    assert {name: crash.get(name) for name in ("classname", "time", "file", "line")} == {
        "classname": "prompts.triage",
        "time": "0.250",
        "file": "prompts/triage.tests.yaml",
        "line": "4",
    }
    assert {name: [part.tag for part in case] for name, case in cases.items()} == {
        "a refund": [],
        "a crash": ["failure"],
        "a call": ["error"],
        "quality": ["system-out"],
        "brevity": ["failure"],
        "is fast": ["skipped"],
    }
    assert (crash[0].get("type"), crash[0].get("message"), crash[0].text) == ("equals", FAILED.reason, detail(FAILED))
    assert cases["brevity"][0].get("type") == "gate"


def test_detail() -> None:
    assert detail(FAILED).splitlines() == [
        'queue: found "account", expected equals "billing"',
        "",
        "inputs:",
        "  ticket:",
        "    It <b>crashed</b>",
        "    again",
        "",
        "outputs:",
        "  queue: account",
        "",
        "queue equals:",
        "  found: account",
        "  expected: billing",
    ]
    assert detail(result()) == ""


@pytest.mark.parametrize("type", ["equals", "rouge-l"])
def test_long_text_is_shown_as_a_diff(type: str) -> None:
    failed = result(status="fail", reason="differs", checks=(check(type, FOUND, EXPECTED),))
    assert detail(failed).splitlines()[2:] == [
        f"queue {type}:",
        "  - expected",
        "  + found",
        "  @@ -1,3 +1,3 @@",
        "   The tower stands in Paris.",
        "  -It was built in 1889 by Eiffel.",
        "  +It was built in 1887 by Eiffel.",
        "   It is 330 metres tall.",
    ]
    page = FORMATS["html"](Report("r", "", (failed,), 0.0))
    assert "<del>-It was built in 1889 by Eiffel.</del><ins>+It was built in 1887 by Eiffel.</ins>" in page


@pytest.mark.parametrize("type", ["contains", "not-equals", "regex"])
def test_a_pattern_is_not_compared_line_by_line(type: str) -> None:
    failed = result(status="fail", reason="differs", checks=(check(type, FOUND, EXPECTED),))
    assert detail(failed).splitlines()[3:] == [f"  found: {FOUND}", f"  expected: {EXPECTED}"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("prompts/triage.tests.yaml", "prompts.triage"),
        ("/abs/one.compiled.yaml", "abs.one.compiled"),
        ("../x/cases.csv", "x.cases.csv"),
        ("a.tests.yml", "a"),
        ("", "cuecard"),
    ],
)
def test_suite_names(path: str, name: str) -> None:
    assert suite_name(path) == name


def test_markdown() -> None:
    text = FORMATS["markdown"](REPORT)
    place = "<br><sub><code>prompts/triage.tests.yaml&#58;{}</code></sub>"
    assert text.splitlines() == [
        "### ! prompts: 2 passed, 2 failed, 1 could not be run, 1 skipped",
        "",
        "on <code>fake</code>",
        "",
        "**Failed**",
        "",
        "| Test | Checked | Found | Expected |",
        "| --- | --- | --- | --- |",
        f"| a crash{place.format(4)} | <code>queue equals</code> | <code>account</code> | <code>billing</code> |",
        "",
        "**Could not be run**",
        "",
        "| Test | Why |",
        "| --- | --- |",
        f"| a call{place.format(5)} | <code>too hot</code> |",
        "",
        "**Gates**",
        "",
        "|  | Gate | Score | Measured |",
        "| --- | --- | --- | --- |",
        f"| ✓ | quality{place.format(3)} | 0.583 | <code>exact&#95;match 0.583 &#91;0.494, 0.668&#93; on 120 rows, at least 0.5</code> |",
        f"| ✗ | brevity{place.format(3)} | 0.400 | <code>f1 is worse than the baseline&#58; -0.1 &#91;-0.2, -0.05&#93;</code> |",
        "",
        "**Skipped**",
        "",
        "| Test | Why |",
        "| --- | --- |",
        "| is fast<br><sub><code>prompts/cases.csv&#58;2</code></sub> | <code>no time in a replay</code> |",
    ]
    assert FORMATS["markdown"](Report("fine", "", (result(),), 0.0)) == "### ✓ fine: 1 passed\n"


def test_markdown_mentions_nobody_and_keeps_its_cells() -> None:
    nasty = "@team `x` | [a](b) #12 https://x.example www.x.example <img src=x>\n**loud** \\"
    text = FORMATS["markdown"](Report("r", "", (result("@you #1", "fail", checks=(check(found=nasty),)),), 0.0))
    row = next(line for line in text.splitlines() if "queue equals" in line)
    assert row.count("|") == 5
    assert not re.search(r"[@`\[\]*\\]|(?<!&)#|https?:|www\.|<img", row)
    assert html.unescape(row).count("@\u200byou") == 1
    assert "<code>" + " ".join(nasty.split()) + "</code>" in html.unescape(row)


def test_markdown_has_an_end() -> None:
    many = tuple(result(f"t{n}", "fail", checks=(check(found="|" * 5000),)) for n in range(400))
    text = FORMATS["markdown"](Report("r", "", many, 0.0))
    assert len(text) < 65_536
    shown = text.count("queue equals")
    assert shown > 5 and f"… and {400 - shown} more" in text and "more characters" in text


class Page(HTMLParser):
    """What a browser would make of a page: the tags, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "input"):
            self.open.append(tag)
        self.loaded += [name for name, _ in attrs if name in ("src", "href", "onclick", "onerror")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_is_one_page_without_scripts() -> None:
    text = FORMATS["html"](REPORT)
    page = Page(text)
    assert page.open == [] and page.loaded == [] and "script" not in page.tags and "b" in page.tags
    assert "url(" not in text and "@import" not in text
    for part in ("It <b>crashed</b>\nagain", "2 failed", "1 could not be run", "too hot", "0.583 [0.494, 0.668]"):
        assert part in page.text
    assert [text.count(f'<details class="test {status}"') for status in ("pass", "fail", "error", "skip")] == [
        2,
        2,
        1,
        1,
    ]
    for status in ("fail", "error", "pass", "skip"):
        assert f'id="show-{status}"' in text and f"#show-{status}:checked ~ main" in text
    assert text.count(" open>") == 3


CHARACTERS = st.text(st.characters(codec=None), max_size=30)


@settings(max_examples=150, deadline=None)
@given(name=CHARACTERS, reason=CHARACTERS, found=CHARACTERS, expected=CHARACTERS, value=CHARACTERS)
def test_any_text_makes_a_whole_file(name: str, reason: str, found: str, expected: str, value: str) -> None:
    failed = result(name, "fail", reason=reason, checks=(check(found=found, expected=expected),), inputs={"x": value})
    errors = result(name, "error", reason=reason, path=value, tags=(name,), line=None)
    report = Report(name, found, (failed, errors, result(name, score=float("nan"), kind="gate")), 0.0)
    texts = {kind: make(report) for kind, make in FORMATS.items()}
    assert texts == {kind: make(report) for kind, make in FORMATS.items()}
    for text in texts.values():
        text.encode("utf-8")
    assert len(list(ElementTree.fromstring(texts["junit"]).iter("testcase"))) == 3
    data = json.loads(texts["json"])
    assert data["tests"][0]["checks"][0]["found"] == found and data["tests"][2]["score"] is None
    assert [json.loads(line)["name"] for line in texts["jsonl"].removesuffix("\n").split("\n")] == [name] * 3
    page = Page(texts["html"])
    assert page.open == [] and page.tags.count("details") == 3
    assert all(line.count("|") in (3, 5) for line in texts["markdown"].splitlines() if line.startswith("|"))


# ---- the command


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cuecard.compiler.cli.test.open_target", lambda *_: fake_target(made))
    cases = [
        "{name: a refund, inputs: {ticket: about billing}, assert: [{type: equals, value: billing}]}",
        "{name: a crash, inputs: {ticket: about technical}, assert: [{type: equals, value: billing}]}",
    ]
    lines = "".join(f"  - {case}\n" for case in cases)
    Path("spec.yaml").write_text(f"{HEAD}tests:\n{lines}", encoding="utf-8")
    write_rows(Path("rows.jsonl"), tickets("row", 6))


def test_the_command_writes_reports(asked: None, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--junit", "r.xml", "--markdown", "r.md", "--html", "r.html", "--jsonl", "r.jsonl"]
    plain = cuecard(capsys, "test", "spec.yaml", "--json")
    said = cuecard(capsys, "test", "spec.yaml", "--json", *options)
    assert (said, said.code) == (plain, 1)
    data = json.loads(said.out)
    assert [json.loads(line) for line in Path("r.jsonl").read_text().splitlines()] == [
        {"program": "spec", "target": "fake (fake)", **test} for test in data["tests"]
    ]
    assert ElementTree.parse("r.xml").getroot().get("failures") == "1"
    assert Path("r.md").read_text().startswith("### ✗ spec: 1 passed, 1 failed\n")
    assert "<title>spec: 1 passed, 1 failed</title>" in Path("r.html").read_text()


@pytest.mark.parametrize("option", ["--junit", "--markdown", "--html", "--jsonl"])
def test_a_place_that_is_none_is_told_before_the_tests_run(
    asked: None, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    said = cuecard(capsys, "test", "spec.yaml", option, "nowhere/file")
    assert (said.code, said.out) == (2, "") and f"{option}: there is no folder 'nowhere'" in said.err


def test_the_workflow_of_the_docs_uses_options_that_exist(
    asked: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / "ci.md").read_text(encoding="utf-8"), re.S)
    (workflow,) = [data for data in map(yaml.safe_load, blocks) if "jobs" in data]
    (words,) = [
        step["run"].split()
        for step in workflow["jobs"]["test"]["steps"]
        if step.get("run", "").startswith("cuecard test")
    ]
    (tmp_path / "prompts").mkdir()
    tests = Path("spec.yaml").read_text().partition("tests:\n")[2]
    Path("prompts/spec.yaml").write_text(HEAD)
    Path("prompts/a.tests.yaml").write_text(f"program: spec.yaml\ntests:\n{tests}")
    assert main(words[1:]) == 1
    capsys.readouterr()
    assert {path.name for path in tmp_path.glob("results.*")} == {"results.xml", "results.md", "results.html"}
