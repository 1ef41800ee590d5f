"""Programs of two and three predictors, searched jointly: their test scores before and after a compile.

    python benchmarks/programs.py --data DIR [--programs label retrieve revise] [--seconds 180] [--rows 100 80 100]

    label     trec6: what a question is about, then the kind of its answer       exact match
    retrieve  squad_xquad, without its contexts: search words, then the answer   token F1
              from the passage that they find among those of all rows
    revise    e2e_nlg: a draft, what it leaves out, then the sentence            BLEU

Only the last step's output has gold values: the demos of the others are bootstrapped through the whole program. DIR is
that of `compile_quality.py`. `p` is that of the compile: on dev, of the best of all candidates. The last column is the
task's program of one step, compiled in the same way: more steps are no gain by themselves.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from task_sets import TASKS, program_of, splits

import cuecard

SETS = {"label": "trec6", "retrieve": "squad_xquad", "revise": "e2e_nlg"}
LONGEST = 40  # tokens of an intermediate result


class Label(dspy.Module):
    """Two steps: what the question is about, then its label."""

    def __init__(self, train: Sequence[dspy.Example]) -> None:
        super().__init__()
        about = cuecard.signature("question -> asked", "Say in a few words what the question asks for.")
        labels = sorted({row.label for row in train})
        told = f"question, asked -> label: Literal[{', '.join(map(repr, labels))}]"
        self.about = dspy.Predict(about, max_tokens=LONGEST)
        self.label = dspy.Predict(cuecard.signature(told, TASKS["trec6"].instructions))

    def forward(self, question: str) -> dspy.Prediction:
        """The label of a question."""
        return self.label(question=question, asked=self.about(question=question).asked)


class Passages:
    """The passages of a task set, found by TF-IDF."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = sorted(set(texts))
        self._vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")
        self._vectors = self._vectorizer.fit_transform(self.texts)

    def best(self, query: str) -> str:
        """The passage nearest to a query."""
        return self.texts[int((self._vectors @ self._vectorizer.transform([query]).T).toarray().argmax())]

    def __deepcopy__(self, memo: object) -> Passages:
        return self  # programs are copied for every candidate, passages never change


class Retrieve(dspy.Module):
    """Two steps: words to search for, then an answer from the passage that they and the question find."""

    def __init__(self, passages: Passages) -> None:
        super().__init__()
        self.passages = passages
        words = cuecard.signature("question -> words", "Give the words to search for, to find where the answer stands.")
        self.words = dspy.Predict(words, max_tokens=LONGEST)
        self.answer = dspy.Predict(cuecard.signature("context, question -> answer", TASKS["squad_xquad"].instructions))

    def forward(self, question: str) -> dspy.Prediction:
        """The answer to a question."""
        context = self.passages.best(f"{question} {self.words(question=question).words}")
        return self.answer(context=context, question=question)


class Revise(dspy.Module):
    """Three steps: a draft, what is missing from it, then the text."""

    def __init__(self) -> None:
        super().__init__()
        task = TASKS["e2e_nlg"]
        review = "Say in a few words what of the meaning representation the draft leaves out."
        self.write = dspy.Predict(cuecard.signature("meaning -> draft", task.instructions))
        self.check = dspy.Predict(cuecard.signature("meaning, draft -> missing", review), max_tokens=LONGEST)
        self.revise = dspy.Predict(cuecard.signature("meaning, draft, missing -> text", task.instructions))

    def forward(self, meaning: str) -> dspy.Prediction:
        """The text of a meaning representation."""
        draft = self.write(meaning=meaning).draft
        missing = self.check(meaning=meaning, draft=draft).missing
        return self.revise(meaning=meaning, draft=draft, missing=missing)


def made(name: str, found: Sequence[Sequence[dspy.Example]]) -> tuple[dspy.Module, list[list[dspy.Example]]]:
    """A program and the rows that it is given."""
    if name == "label":
        return Label(found[0]), [list(rows) for rows in found]
    if name == "revise":
        return Revise(), [list(rows) for rows in found]
    passages = Passages([row.context for rows in found for row in rows])
    asked = [[row.without("context").with_inputs("question") for row in rows] for rows in found]
    return Retrieve(passages), asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--programs", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--rows", type=int, nargs=3, default=(100, 80, 100), metavar=("TRAIN", "DEV", "TEST"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(
        "program", "predictors", "metric", "before, test", "compiled, test", "p", "seconds", "one step, compiled"
    )
    for name in options.programs:
        table.add_row(*row_of(name, options))
        console.print(table)


def row_of(name: str, options: argparse.Namespace) -> tuple[str, ...]:
    """A program's row: its scores on test, and that of the task set's program of one step after the same search."""
    found = splits(options.data, SETS[name], options.rows, options.seed)
    program, rows = made(name, found)
    result = compiled_on(name, program, rows, options)
    alone = compiled_on(f"{name}-alone", program_of(SETS[name], found[0]), found, options)
    verdict = result.result.verdict
    return (
        name,
        str(len(program.predictors())),
        TASKS[SETS[name]].metric,
        _interval(result.baseline["test"]),
        _interval(result.compiled["test"]),
        "-" if verdict is None else f"{verdict.p_value:.3f}",
        f"{result.seconds:.0f}",
        _interval(alone.compiled["test"]),
    )


def compiled_on(
    name: str, program: dspy.Module, rows: Sequence[Sequence[dspy.Example]], options: argparse.Namespace
) -> Any:
    """How the compile of a program came about."""
    train, dev, test = rows
    return cuecard.compile(
        program,
        trainset=train,
        devset=dev,
        testset=test,
        metric=TASKS[SETS[name.partition("-")[0]]].metric,
        target=cuecard.target("smollm2-135m"),
        budget={"seconds": options.seconds},
        seed=options.seed,
        name=name,
        runs=Path(tempfile.mkdtemp(prefix="cuecard-programs-")),
    ).compilation


def _interval(score: Any) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


if __name__ == "__main__":
    main()
