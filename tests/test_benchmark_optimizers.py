"""The table of `benchmarks/optimizers.py`: what is run again, and how two optimizers are compared."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import cuecard
from cuecard.metrics import metric, paired_test

GOLD = ["the cat sat on the mat", "a dog ran in the park", "we all like green tea", "it rains in the north"]
OURS = ["the cat sat on a mat", "a dog ran in the park", "we like green tea", "it rains up north"]
THEIRS = ["the cat is on a mat", "a dog in the park", "we all like tea", "it snows in the north"]


@pytest.fixture
def optimizers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(cuecard.__file__).parent / "benchmarks")
    return importlib.import_module("optimizers")


def line(optimizer: str, seed: int, measured: list[list[Any]], **more: Any) -> dict[str, Any]:
    head = {
        "task": "trec6",
        "model": "smollm2-135m",
        "optimizer": optimizer,
        "seed": seed,
        "calls": 9,
        "rows": [1, 2, 3],
    }
    return {**head, "measured": measured, **more}


def test_the_same_rows_under_several_seeds_are_no_more_rows(optimizers: ModuleType) -> None:
    generator = np.random.default_rng(0)
    scores = {f"{n:03}": generator.random(2) < (0.7, 0.5) for n in range(100)}
    one = [[[key, 1.0, float(both[side])] for key, both in scores.items()] for side in (0, 1)]
    once = optimizers._against("exact_match", [line("joint", 0, one[0])], [line("dspy.SIMBA", 0, one[1])])
    ours, theirs = ([line("x", seed, one[side]) for seed in range(5)] for side in (0, 1))
    assert optimizers._against("exact_match", ours, theirs) == once
    found = paired_test(
        metric("exact_match"),
        *([cuecard.metrics.Measurement(row[2]) for row in one[side]] for side in (0, 1)),
    )
    assert once == f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def test_only_what_both_have_is_compared(optimizers: ModuleType) -> None:
    ours = [line("joint", 0, [["a", 1.0, 1.0], ["b", 1.0, 0.0]]), line("joint", 1, [["c", 1.0, 1.0]])]
    theirs = [line("dspy.SIMBA", 0, [["a", 1.0, 0.0], ["b", 1.0, 0.0], ["d", 1.0, 1.0]])]
    assert optimizers._against("exact_match", ours, theirs).startswith("+0.500 [")
    assert optimizers._against("exact_match", ours[1:], theirs) == "-"


def test_bleu_is_compared_by_corpus(optimizers: ModuleType) -> None:
    bleu = metric("bleu")
    measured = [
        [bleu.measure({"x": gold}, {"x": text}) for gold, text in zip(GOLD, texts, strict=True)]
        for texts in (OURS, THEIRS)
    ]
    lines = [[line("x", 0, [[str(n), *each.row] for n, each in enumerate(side)])] for side in measured]
    corpora = bleu.aggregate(measured[0]) - bleu.aggregate(measured[1])
    assert optimizers._against("bleu", *lines).startswith(f"{corpora:+.3f} [")
    old = [[{**side[0], "measured": None, "scores": [0.5] * 4}] for side in lines]
    assert optimizers._against("bleu", *old) == "-", "sentence scores are no corpus scores"


def test_lines_of_an_older_version_are_read(optimizers: ModuleType, tmp_path: Path) -> None:
    old = {key: part for key, part in line("joint", 0, []).items() if key not in ("model", "measured")}
    (tmp_path / "old.jsonl").write_text(json.dumps({**old, "scores": [1, 0, None, 1]}) + "\n")
    [read] = optimizers.known(tmp_path / "old.jsonl")
    assert read["model"] == "smollm2-135m"
    other = [{**read, "optimizer": "dspy.SIMBA", "scores": [0, 0, 1, 1]}]
    assert optimizers._against("exact_match", [read], other).startswith("+0.333 [")


@pytest.mark.parametrize(("model", "again"), [("smollm2-135m", False), ("another", True)])
def test_another_model_is_another_compile(
    optimizers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, again: bool
) -> None:
    (tmp_path / "out.jsonl").write_text(json.dumps(line("joint", 0, [])) + "\n")

    def splits(*_: Any) -> Any:
        raise RuntimeError("it is run")

    monkeypatch.setattr(optimizers, "splits", splits)
    options = argparse.Namespace(out=tmp_path / "out.jsonl", model=model, calls=9, rows=(1, 2, 3), data=tmp_path)
    if again:
        with pytest.raises(RuntimeError, match="it is run"):
            optimizers.run("trec6", "joint", 0, options, Console())
    else:
        optimizers.run("trec6", "joint", 0, options, Console())


def test_a_table_a_model(optimizers: ModuleType) -> None:
    more = {"test": {"value": 0.5}, "seconds": 2.0, "metric_calls": 9, "stopped_by": "budget"}
    lines = [line(name, 0, [["a", 1.0, 1.0], ["b", 1.0, 0.0]], **more) for name in ("joint", "dspy.SIMBA")]
    titles = [table.title for table in optimizers.tables([*lines, *({**each, "model": "other"} for each in lines)])]
    assert titles == [
        f"trec6 on {model}: exact_match, test; the best of DSPy's is dspy.SIMBA" for model in ("smollm2-135m", "other")
    ]
