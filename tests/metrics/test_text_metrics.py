"""ROUGE, BLEU and chrF equal the libraries that define them; corpus scores come from summed statistics."""

from __future__ import annotations

from typing import Any

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from cuecard.metrics import metric

words = st.sampled_from(["the", "cats", "cat", "sat", "on", "Running", "run", "mat.", "don't", "é", "東京", "\n", "12"])
sentences = st.lists(words, max_size=9).map(" ".join) | st.text(max_size=10)
reference_lists = st.lists(sentences, min_size=1, max_size=3)
corpora = st.lists(st.tuples(reference_lists, sentences), min_size=1, max_size=5)

KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}


def score(spec: Any, gold: Any, prediction: Any) -> float:
    return metric(spec).measure({"answer": gold}, {"answer": prediction}).score


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=100, deadline=None)
@given(
    gold=reference_lists, prediction=sentences, stem=st.booleans(), part=st.sampled_from(["f1", "precision", "recall"])
)
def test_rouge_is_the_rouge_score_library(name: str, gold: list[str], prediction: str, stem: bool, part: str) -> None:
    library = RougeScorer([KINDS[name]], use_stemmer=stem).score_multi(gold, prediction)[KINDS[name]]
    expected = {"f1": library.fmeasure, "precision": library.precision, "recall": library.recall}[part]
    assert score({"metric": name, "use_stemmer": stem, "score": part}, gold, prediction) == expected


def test_rouge_lsum_takes_lines_for_sentences_and_rouge_l_does_not() -> None:
    gold, swapped = "the cat sat\non a mat", "on a mat\nthe cat sat"
    assert score("rouge_lsum", gold, swapped) == 1
    assert score("rouge_l", gold, swapped) == pytest.approx(0.5)


@settings(max_examples=200, deadline=None)
@given(reference_lists, sentences)
def test_bleu_of_one_example_is_sentence_bleu(gold: list[str], prediction: str) -> None:
    expected = sacrebleu.sentence_bleu(prediction, gold, use_effective_order=True).score / 100
    assert score("bleu", gold, prediction) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(reference_lists, sentences, st.sampled_from([0, 2]))
def test_chrf_of_one_example_is_sentence_chrf(gold: list[str], prediction: str, word_order: int) -> None:
    expected = sacrebleu.sentence_chrf(prediction, gold, word_order=word_order).score / 100
    ours = score({"metric": "chrf", "word_order": word_order}, gold, prediction)
    assert ours == pytest.approx(expected, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(corpora, st.booleans())
def test_aggregates_are_sacrebleus_corpus_scores(corpus: list[tuple[list[str], str]], lowercase: bool) -> None:
    predictions = [prediction for _, prediction in corpus]
    most = max(len(gold) for gold, _ in corpus)
    # sacrebleu takes a list per reference position, with None where an example has fewer references.
    streams: Any = [[gold[i] if i < len(gold) else None for gold, _ in corpus] for i in range(most)]
    bleu = sacrebleu.BLEU(lowercase=lowercase).corpus_score(predictions, streams).score / 100
    chrf = sacrebleu.CHRF(lowercase=lowercase).corpus_score(predictions, streams).score / 100
    for name, expected in (("bleu", bleu), ("chrf", chrf)):
        ours = metric({"metric": name, "lowercase": lowercase})
        measurements = [ours.measure({"answer": gold}, {"answer": prediction}) for gold, prediction in corpus]
        assert ours.aggregate(measurements) == pytest.approx(expected, abs=1e-12), name


def test_corpus_bleu_is_not_the_mean_of_sentence_scores() -> None:
    bleu = metric("bleu")
    golds = ["the cat sat on the mat today", "hello there general kenobi my friend"]
    predictions = ["the cat sat on the mat today", "hello there my friend"]
    measured = [bleu.measure({"a": g}, {"a": p}) for g, p in zip(golds, predictions, strict=True)]
    mean = sum(m.score for m in measured) / 2
    assert bleu.aggregate(measured) == pytest.approx(sacrebleu.corpus_bleu(predictions, [golds]).score / 100)
    assert abs(bleu.aggregate(measured) - mean) > 0.05


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter"])
def test_an_unreadable_output_weighs_with_its_references_length(name: str) -> None:
    ours = metric(name)
    good = ours.measure({"a": "the cat sat on the mat"}, {"a": "the cat sat on the mat"})
    lost = ours.worst({"a": "a dog ran through the park"})
    assert lost.score == 0
    assert lost.statistics == ours.measure({"a": "a dog ran through the park"}, {"a": ""}).statistics
    assert ours.aggregate([good]) == pytest.approx(1)
    assert ours.aggregate([good, lost]) < 0.9


def test_bleu_over_two_fields_is_bleu_over_the_segments_of_both() -> None:
    bleu = metric("bleu")
    gold = {"title": "a short title here", "body": "the cat sat on the mat"}
    prediction = {"title": "a title here", "body": "the cat sat on a mat"}
    expected = sacrebleu.corpus_bleu(list(prediction.values()), [list(gold.values())]).score / 100
    assert bleu.aggregate([bleu.measure(gold, prediction)]) == pytest.approx(expected)


@pytest.mark.parametrize("name", [*KINDS, "bleu", "chrf"])
def test_empty_texts_score_zero(name: str) -> None:
    assert [score(name, g, p) for g, p in (("", ""), ("", "cat"), ("cat", ""), ("cat", None))] == [0, 0, 0, 0]


def test_ter_is_what_the_edits_leave_of_one_and_never_below_zero() -> None:
    assert score("ter", "the cat sat on the mat", "on the mat the cat sat") == pytest.approx(5 / 6)  # One move.
    assert score("ter", ["a b c d", "a b"], "a b") == 1  # No edit to the second; its length would not matter.
    assert score("ter", ["a b c d", "x y"], "a b") == pytest.approx(1 / 3)  # Two edits, by the mean length of three.
    assert score("ter", "cat", "a dog ran through the park") == 0
    assert score({"metric": "ter", "case_sensitive": True}, "Cat", "cat") == 0
    assert [score("ter", g, p) for g, p in (("", ""), ("", "cat"), ("cat", ""))] == [1, 0, 0]
    ours = metric("ter")
    long, right = ours.measure({"a": "cat"}, {"a": "a dog ran off"}), ours.measure({"a": "a b c d"}, {"a": "a b c d"})
    assert ours.aggregate([long, right]) == pytest.approx(1 - 4 / 5)  # What is too long weighs on the others.


def test_chinese_needs_its_own_tokenizer_or_characters() -> None:
    gold, prediction = "我喜欢在公园里散步", "我喜欢在公园里跑步"
    assert score("rouge_l", gold, gold) == 0  # rouge-score keeps a-z and digits only.
    assert score("bleu", gold, prediction) == 0
    assert score({"metric": "bleu", "tokenize": "zh"}, gold, prediction) > 0.5
    assert score("chrf", gold, gold) == 1
