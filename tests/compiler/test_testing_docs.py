"""What the documentation shows of tests loads and runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import FakeEngine

import cuecard
from cuecard.compiler.testing import KINDS, read_suite
from cuecard.programs.schema import Spec

from .testing_cases import results

DOCS = Path(cuecard.__file__).parent / "docs"


def blocks(name: str) -> dict[str, str]:
    """The blocks of code in a page, by the file name in their first line, or by their language."""
    found = re.findall(r"```(\w+)\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.S)
    return {(first[1] if (first := re.match(r"# (\S+)\n", text)) else language): text for language, text in found}


def answer(prompt: str, *_: Any) -> str:
    asked = prompt.rpartition("Message:")[2]
    if "JSON" in asked:
        return f" {json.dumps({'order': 1234, 'state': 'sent'})}\n"
    return " We will refund order 1234 within a week.\n" if "1234" in asked else " On Sunday we are closed.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    page = blocks("from-promptfoo.md")
    for name in ("reply.yaml", "reply.tests.yaml", "table.tests.yaml"):
        (tmp_path / name).write_text(page[name], encoding="utf-8")
    (tmp_path / "replies.csv").write_text(page["csv"], encoding="utf-8")
    return tmp_path


def test_the_translated_tests_run(folder: Path) -> None:
    found = results(read_suite(folder / "reply.tests.yaml"), FakeEngine(answer))
    assert {name: (result.status, result.reason) for name, result in found.items()} == {
        name: ("pass", "") for name in ("opening hours", "a refund", "for machines")
    }
    refused = results(read_suite(folder / "reply.tests.yaml"), FakeEngine(lambda *_: " As an AI I cannot say.\n"))
    assert [result.status for result in refused.values()] == ["fail", "fail", "fail"]


def test_the_table_runs(folder: Path) -> None:
    found = results(read_suite(folder / "table.tests.yaml"), FakeEngine(answer))
    assert {name: result.status for name, result in found.items()} == {"table: hours": "pass", "table: refund": "pass"}


def test_the_translation_is_line_for_line() -> None:
    page = blocks("from-promptfoo.md")
    before = yaml.safe_load(page["promptfooconfig.yaml"])["tests"]
    after = yaml.safe_load(page["reply.tests.yaml"])["tests"]
    renamed = {"description": "name", "vars": "inputs"}
    assert [{renamed.get(key, key): value for key, value in test.items()} for test in before] == after
    assert len({part["type"] for test in before for part in test["assert"]}) >= 10


def test_every_type_is_documented() -> None:
    table = (
        (DOCS / "testing.md").read_text(encoding="utf-8").partition("## Assertions")[2].partition("## Many cases")[0]
    )
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for cell in first for name in re.findall(r"`([\w-]+)`", cell)} - {"type"} == {*KINDS, "assert-set"}


def test_the_keys_in_the_specs_page_are_keys() -> None:
    (text,) = re.findall(r"## Tests\n\n```yaml\n(.*?)```", (DOCS / "spec.md").read_text(encoding="utf-8"), re.S)
    spec = Spec.model_validate({"signature": "ticket -> queue", **yaml.safe_load(text)})
    assert [test.name for test in spec.tests] == ["a double charge goes to billing", "known tickets", "quality holds"]
