"""Score against prompt length, from the spec to the summary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import WordLearner, compile_tickets, fake_target, spec_folder

import cuecard
from cuecard.compiler.cli.summary import summary
from cuecard.compiler.from_spec import compile_spec
from cuecard.errors import InputError


def test_a_rule_of_the_spec_is_followed_and_told(tmp_path: Path) -> None:
    spec = spec_folder(tmp_path)
    text = spec.read_text(encoding="utf-8")
    spec.write_text(text.replace("optimize: {", "optimize: {choose: {at_most_tokens: 150}, "), encoding="utf-8")
    compiled = compile_spec(spec, target=fake_target(WordLearner().engine()), runs=tmp_path / "runs")
    told = json.loads(compiled.compilation.folder.run.read_text())
    assert told["choose"] == {"at_least": None, "at_most_tokens": 150.0}
    assert all(point["tokens"] <= 150 for point in told["front"]) and told["front"]
    assert any(line.startswith("Prompt tokens of a run") for line in summary(compiled.compilation))
    assert cuecard.load(tmp_path / "two_steps.compiled.yaml") is not None


def test_by_default_the_best_score_is_taken_and_the_front_is_kept_all_the_same(tmp_path: Path) -> None:
    compiled = compile_tickets(tmp_path)
    told = json.loads(compiled.compilation.folder.run.read_text())
    assert "choose" not in told
    tokens = [point["tokens"] for point in told["front"]]
    assert tokens == sorted(tokens) and told["front"][-1]["trial"] == told["trial"]
    assert not any("Prompt tokens" in line for line in summary(compiled.compilation))


def test_two_rules_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose: found both at_least and at_most_tokens"):
        compile_tickets(tmp_path, choose={"at_least": 0.5, "at_most_tokens": 100})
