"""The public task sets of the quality benchmarks: how their rows become a program, its examples and its metric.

A folder holds one folder a set with train.jsonl, dev.jsonl and test.jsonl; none of it is part of the project.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

import cuecard

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class TaskSet:
    """How a task set's rows become a program: `fields` maps the data's column to the signature's field."""

    signature: str
    instructions: str
    fields: Mapping[str, str]
    inputs: tuple[str, ...]
    metric: Any
    label: str | None = None
    numbers: bool = False


TASKS = {
    "trec6": TaskSet(
        "question -> label: {labels}",
        "Classify the question by the kind of answer it asks for.",
        {"text": "question", "label": "label"},
        ("question",),
        "exact_match",
        "label",
    ),
    "snips": TaskSet(
        "request -> label: {labels}",
        "Classify the request by its intent.",
        {"text": "request", "label": "label"},
        ("request",),
        "exact_match",
        "label",
    ),
    "boolq": TaskSet(
        "context, question -> answer: {labels}",
        "Answer the question from the context.",
        {"context": "context", "question": "question", "answer": "answer"},
        ("context", "question"),
        "exact_match",
        "answer",
    ),
    "squad_xquad": TaskSet(
        "context, question -> answer",
        "Answer the question with a short phrase from the context.",
        {"context": "context", "question": "question", "answers": "answer", "answer": "answer"},
        ("context", "question"),
        "f1",
    ),
    "e2e_nlg": TaskSet(
        "meaning -> text",
        "Write one sentence about the restaurant that says everything in the meaning representation.",
        {"meaning_representation": "meaning", "mr": "meaning", "references": "text"},
        ("meaning",),
        "bleu",
    ),
    "scitldr": TaskSet(
        "abstract -> summary",
        "Sum up the abstract in one sentence.",
        {"abstract": "abstract", "references": "summary"},
        ("abstract",),
        "rouge_l",
    ),
    "svamp": TaskSet(
        "question -> answer: int",
        "Solve the word problem.",
        {"question": "question", "answer": "answer"},
        ("question",),
        "exact_match",
        numbers=True,
    ),
    "bbh_navigate": TaskSet(
        "question -> answer: {labels}",
        "Say whether the walk ends where it began.",
        {"question": "question", "answer": "answer"},
        ("question",),
        "exact_match",
        "answer",
    ),
}


def read(path: Path, task: TaskSet) -> list[dspy.Example]:
    """The examples of one file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    renamed = [{task.fields[key]: value for key, value in row.items() if key in task.fields} for row in rows]
    if task.numbers:
        renamed = [{**row, "answer": int(row["answer"])} for row in renamed]
    return [dspy.Example(row).with_inputs(*task.inputs) for row in renamed]


def splits(
    data: Path, name: str, rows: Sequence[int | None] = (None, None, None), seed: int = 0
) -> list[list[dspy.Example]]:
    """Train, dev and test of a set, at most so many rows of each, drawn by the seed."""
    found = []
    for split, most in zip(SPLITS, rows, strict=True):
        examples = read(data / name / f"{split}.jsonl", TASKS[name])
        if most is not None:
            random.Random(f"{name} {split} {seed}").shuffle(examples)
        found.append(examples[:most])
    return found


def program_of(name: str, examples: Sequence[dspy.Example]) -> dspy.Module:
    """The uncompiled program of a set; `examples` tell the labels."""
    task = TASKS[name]
    labels = sorted({row[task.label] for row in examples}) if task.label else []
    signature = task.signature.format(labels=f"Literal[{', '.join(map(repr, labels))}]")
    return dspy.Predict(cuecard.signature(signature, task.instructions))


def without_a_model(train: Sequence[Any], test: Sequence[Any], task: TaskSet) -> float:
    """Accuracy of TF-IDF + logistic regression on the same rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=999)
    )
    texts = [[" ".join(row[name] for name in task.inputs) for row in rows] for rows in (train, test)]
    pipeline.fit(texts[0], [row[task.label] for row in train])
    found = pipeline.predict(texts[1])
    return sum(a == row[task.label] for a, row in zip(found, test, strict=True)) / len(test)
