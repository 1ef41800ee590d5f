"""Every metric that a library defines equals that library on 5,000 random cases.

hypothesis draws the seeds, 50 of them, and each seed makes 100 cases: drawing every case by hypothesis would take minutes.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import sacrebleu
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk import edit_distance
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_score, recall_score
from sklearn.preprocessing import MultiLabelBinarizer

from cuecard.metrics import Metric, metric

CASES = 100
WORDS = [
    "the",
    "the",
    "a",
    "cat",
    "cats",
    "cat's",
    "sat",
    "Sat",
    "on",
    "mat.",
    "mat,",
    "Running",
    "runs",
    "3.5",
    "é",
    "東京",
    "don't",
    "&",
    "--",
    "\n",
]
LETTERS = "aab  cé東\n"
LABELS = ["billing", "technical", "account", "other"]


def batched(check: Callable[[random.Random], None]) -> Callable[[], None]:
    """Run `check`, which makes `CASES` cases itself, on 50 seeds."""

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 2**32))
    def run(seed: int) -> None:
        check(random.Random(seed))

    run.__name__ = check.__name__
    return run


def seeded(check: Callable[[random.Random], None]) -> Callable[[], None]:
    """Run `check` 5,000 times."""

    @functools.wraps(check)
    def checks(rng: random.Random) -> None:
        for _ in range(CASES):
            check(rng)

    return batched(checks)


def text(rng: random.Random, most: int = 9) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(0, most)))


def corrupted(rng: random.Random, gold: str) -> str:
    """A text near to `gold`, with words dropped, doubled, replaced and moved; sometimes one of its own."""
    if rng.random() < 0.2:
        return text(rng)
    words = [rng.choice(WORDS) if rng.random() < 0.2 else word for word in gold.split(" ") if rng.random() > 0.1]
    if len(words) > 3 and rng.random() < 0.4:
        cut = rng.randrange(len(words))
        words = words[cut:] + words[:cut]
    return " ".join(words + words[: rng.randint(0, 2)])


def segment(rng: random.Random) -> tuple[list[str], str]:
    gold = [text(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
    return gold, corrupted(rng, gold[0])


def score(ours: Metric, gold: Any, prediction: Any) -> float:
    return ours.measure({"x": gold}, {"x": prediction}).score


def aggregate(ours: Metric, pairs: list[tuple[Any, Any]]) -> float:
    return ours.aggregate([ours.measure({"x": gold}, {"x": prediction}) for gold, prediction in pairs])


ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}
PARTS = ("f1", "precision", "recall")
SCORERS = {stem: RougeScorer(list(ROUGE.values()), use_stemmer=stem) for stem in (False, True)}
OURS = {
    (name, part, stem): metric({"metric": name, "score": part, "use_stemmer": stem})
    for name in ROUGE
    for part in PARTS
    for stem in (False, True)
}


@seeded
def test_rouge_is_rouge_score(rng: random.Random) -> None:
    gold, prediction = segment(rng)
    stem = rng.random() < 0.3
    library = SCORERS[stem].score_multi(gold, prediction)
    for name, kind in ROUGE.items():
        best = library[kind]
        part = rng.choice(PARTS)
        expected = {"f1": best.fmeasure, "precision": best.precision, "recall": best.recall}[part]
        assert score(OURS[name, part, stem], gold, prediction) == expected, (name, part, stem, gold, prediction)


SENTENCE: dict[str, tuple[Metric, Callable[[str, list[str]], float]]] = {
    "bleu": (metric("bleu"), lambda h, r: sacrebleu.sentence_bleu(h, r, use_effective_order=True).score / 100),
    "chrf": (metric("chrf"), lambda h, r: sacrebleu.sentence_chrf(h, r).score / 100),
    "ter": (metric("ter"), lambda h, r: max(0.0, 1 - sacrebleu.sentence_ter(h, r).score / 100)),
}


@pytest.mark.parametrize("name", SENTENCE)
def test_sentence_scores_are_sacrebleus(name: str) -> None:
    ours, library = SENTENCE[name]

    @seeded
    def check(rng: random.Random) -> None:
        gold, prediction = segment(rng)
        assert score(ours, gold, prediction) == pytest.approx(library(prediction, gold), abs=1e-12), (gold, prediction)

    check()


CORPUS: dict[str, tuple[Metric, Any, Callable[[float], float]]] = {
    "bleu": (metric("bleu"), sacrebleu.BLEU(force=True), lambda bleu: bleu / 100),
    "chrf": (metric("chrf"), sacrebleu.CHRF(), lambda chrf: chrf / 100),
    "ter": (metric("ter"), sacrebleu.TER(), lambda ter: max(0.0, 1 - ter / 100)),
}


@pytest.mark.parametrize("name", CORPUS)
def test_corpus_scores_are_sacrebleus(name: str) -> None:
    ours, library, scale = CORPUS[name]

    @seeded
    def check(rng: random.Random) -> None:
        pairs = [segment(rng) for _ in range(rng.randint(1, 3))]
        most = max(len(gold) for gold, _ in pairs)
        # sacrebleu takes a list per reference position, with None where an example has fewer references.
        streams: Any = [[gold[i] if i < len(gold) else None for gold, _ in pairs] for i in range(most)]
        if name == "ter":  # sacrebleu's TER takes the same number of references for all.
            pairs = [(gold[:1], prediction) for gold, prediction in pairs]
            streams = [[gold[0] for gold, _ in pairs]]
        expected = library.corpus_score([prediction for _, prediction in pairs], streams).score
        assert aggregate(ours, pairs) == pytest.approx(scale(expected), abs=1e-12), pairs

    check()


def labelled(rng: random.Random) -> list[tuple[str, str]]:
    """Gold labels and predictions, among which few or many are right and some are no label at all."""
    known, right = LABELS[: rng.randint(1, 4)], rng.random()
    strangers = ["unsure"] if rng.random() < 0.3 else []
    golds = rng.choices(known, k=rng.randint(1, 12))
    return [(gold, gold if rng.random() < right else rng.choice(LABELS + strangers)) for gold in golds]


LABEL_METRICS = {name: metric({"metric": name, "labels": LABELS}) for name in ("macro_f1", "mcc")}
ACCURACY = metric("accuracy")


def scikit(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        return function(*arguments, **options)


@batched
def test_macro_f1_is_scikit_learns(rng: random.Random) -> None:
    cases = [labelled(rng) for _ in range(CASES)]
    # scikit-learn takes milliseconds a call. Its F1 a label is asked once for all cases, whose labels are told apart.
    flat = [(f"{i} {gold}", f"{i} {ours}") for i, pairs in enumerate(cases) for gold, ours in pairs]
    occurring = [sorted({label for pair in pairs for label in pair} & set(LABELS)) for pairs in cases]
    names = [f"{i} {label}" for i, known in enumerate(occurring) for label in known]
    found = iter(scikit(f1_score, *zip(*flat, strict=True), labels=names, average=None, zero_division=0))
    for pairs, known in zip(cases, occurring, strict=True):
        expected = np.mean([next(found) for _ in known])
        assert aggregate(LABEL_METRICS["macro_f1"], pairs) == pytest.approx(expected, abs=1e-12), pairs
    whole = scikit(f1_score, *zip(*pairs, strict=True), labels=known, average="macro", zero_division=0)
    assert whole == pytest.approx(expected), pairs  # The last case, by its own call.


@pytest.mark.filterwarnings("ignore:A single label was found")
@seeded
def test_mcc_and_accuracy_are_scikit_learns(rng: random.Random) -> None:
    pairs = labelled(rng)
    codes = {label: code for code, label in enumerate([*LABELS, "unsure"])}  # Numbers are quicker to it than texts.
    gold, ours = (np.array([codes[label] for label in side]) for side in zip(*pairs, strict=True))
    mcc, accuracy = (scikit(function, gold, ours) for function in (matthews_corrcoef, accuracy_score))
    assert aggregate(LABEL_METRICS["mcc"], pairs) == pytest.approx(mcc, abs=1e-12), pairs
    assert aggregate(ACCURACY, pairs) == pytest.approx(accuracy), pairs


ITEMS = ["red", "green", "blue", "sky blue"]
SET_F1 = {part: metric({"metric": "set_f1", "score": part}) for part in PARTS}
SPAN_F1 = {part: metric({"metric": "span_f1", "score": part}) for part in PARTS}
SCIKIT = {"f1": f1_score, "precision": precision_score, "recall": recall_score}


@batched
def test_set_and_span_f1_are_scikit_learns_micro_average(rng: random.Random) -> None:
    def some() -> list[str]:
        return rng.sample(ITEMS, rng.randint(0, 3))

    cases = [[(some(), some()) for _ in range(rng.randint(1, 4))] for _ in range(CASES)]
    binary = MultiLabelBinarizer(classes=ITEMS)
    gold, ours = np.zeros((2, 4 * len(ITEMS), CASES), dtype=int)
    for i, pairs in enumerate(cases):
        for side, lists in zip((gold, ours), zip(*pairs, strict=True), strict=True):
            flat = binary.fit_transform(lists).ravel()
            side[: len(flat), i] = flat
    # The micro average of a case is the F1 of its indicators laid end to end: all cases are columns of one call.
    for part in PARTS:
        expected = scikit(SCIKIT[part], gold, ours, average=None, zero_division=0)
        expected[~(gold.any(axis=0) | ours.any(axis=0))] = 1  # Nothing to find, nothing found.
        for pairs, number in zip(cases, expected, strict=True):
            assert aggregate(SET_F1[part], pairs) == pytest.approx(number, abs=1e-12), (part, pairs)
            spans = [tuple([["COLOUR", item] for item in side] for side in pair) for pair in pairs]
            assert aggregate(SPAN_F1[part], spans) == pytest.approx(number, abs=1e-12), (part, pairs)
    lists = zip(*cases[-1], strict=True)
    whole = scikit(f1_score, *(binary.fit_transform(side) for side in lists), average="micro", zero_division=0)
    assert whole == pytest.approx(aggregate(SET_F1["f1"], cases[-1])) or not gold[:, -1].any() | ours[:, -1].any()


@seeded
def test_levenshtein_is_nltks(rng: random.Random) -> None:
    a, b = ("".join(rng.choices(LETTERS, k=rng.randint(0, 9))) for _ in range(2))
    expected = 1 - edit_distance(a, b) / max(len(a), len(b), 1)
    assert score(metric("levenshtein"), a, b) == pytest.approx(expected, abs=1e-12), (a, b)


@seeded
def test_numeric_is_pytests_approx(rng: random.Random) -> None:
    # Eighths and these tolerances are exact in binary, so that the library has nothing to round.
    gold, ours = (rng.randint(-40, 40) / 8 for _ in range(2))
    absolute, relative = rng.choice([0.0, 0.125, 1.5]), rng.choice([0.0, 0.25, 0.5])
    near = metric({"metric": "numeric", "absolute": absolute, "relative": relative})
    expected = float(ours == pytest.approx(gold, abs=absolute, rel=relative))
    assert score(near, gold, f"about {ours} in all") == expected, (gold, ours, absolute, relative)


@seeded
def test_numeric_is_exact_in_decimals(rng: random.Random) -> None:
    gold, ours, tolerance = (Decimal(rng.randint(0, 300)).scaleb(-2) for _ in range(3))
    near = metric({"metric": "numeric", "absolute": float(tolerance)})
    expected = float(abs(Fraction(gold) - Fraction(ours)) <= Fraction(tolerance))
    assert score(near, str(gold), str(ours)) == expected, (gold, ours, tolerance)


def test_mcc_of_two_labels_is_pearsons_correlation() -> None:
    pairs = [("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "no"), ("yes", "yes"), ("no", "yes")]
    numbers = [[float(label == "yes") for label in side] for side in zip(*pairs, strict=True)]
    expected = pearsonr(*numbers).statistic
    assert aggregate(metric({"metric": "mcc", "labels": ["yes", "no"]}), pairs) == pytest.approx(expected)
