"""Similarity of meaning, with a stand-in for the package that makes the embeddings."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cuecard.errors import InputError
from cuecard.metrics import metric

VECTORS = {"cat": [1.0, 0.0], "kitten": [0.8, 0.6], "tax": [0.0, 1.0], "not a cat": [-1.0, 0.0]}


class Encoder:
    """Knows the vectors of four texts."""

    def __init__(self, model: str, **options: Any) -> None:
        if model == "missing":
            raise OSError("no such folder")
        self.options = options

    def encode(self, texts: list[str], *, normalize_embeddings: bool, show_progress_bar: bool) -> Any:
        assert normalize_embeddings and not show_progress_bar
        return np.array([VECTORS[text] for text in texts], dtype=np.float32)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(SentenceTransformer=Encoder, __version__="6.2.0")
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("gold", "prediction", "expected"),
    [
        ("cat", "cat", 1),
        ("cat", "kitten", 0.8),
        (["tax", "cat"], "kitten", 0.8),
        ("cat", "tax", 0),
        ("cat", "not a cat", 0),  # Below 0 counts as 0.
        ("cat", " ", 0),
        ("", "cat", 0),
        ("", "", 1),
        (["", "cat"], "kitten", 0.8),
    ],
)
def test_similarity_is_the_cosine_with_the_nearest_reference(gold: Any, prediction: str, expected: float) -> None:
    score = metric({"metric": "similarity", "model": "any"}).measure({"x": gold}, {"x": prediction}).score
    assert score == pytest.approx(expected)
    assert 0 <= score <= 1


@pytest.mark.usefixtures("installed")
def test_the_model_is_never_fetched_runs_no_code_and_is_not_copied() -> None:
    ours: Any = metric("similarity")
    ours.measure({"x": "cat"}, {"x": "kitten"})
    assert ours._encoder.options == {"device": "cpu", "local_files_only": True, "trust_remote_code": False}
    assert "_encoder" in vars(ours) and "_encoder" not in vars(copy.deepcopy(ours))


@pytest.mark.usefixtures("installed")
def test_a_model_that_is_not_there_is_told() -> None:
    with pytest.raises(InputError) as caught:
        metric({"metric": "similarity", "model": "missing"}).measure({"x": "cat"}, {"x": "cat"})
    assert str(caught.value) == (
        "metric 'similarity' cannot open the model 'missing': no such folder; expected a folder with a "
        "sentence-transformers model, or the name of one that was fetched before"
    )


def test_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # As if it were not installed.
    with pytest.raises(InputError) as caught:
        metric("similarity").measure({"x": "cat"}, {"x": "cat"})
    assert str(caught.value).startswith("metric 'similarity' needs the package sentence-transformers, which cannot be")
    assert str(caught.value).endswith('\n  Install the extra that has it: pip install "cuecard[embeddings]"')


def test_a_release_that_runs_code_from_model_folders_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(SentenceTransformer=Encoder, __version__="5.9.1")
    monkeypatch.setitem(sys.modules, "sentence_transformers", old)
    with pytest.raises(InputError, match=r"found sentence-transformers 5\.9\.1; expected 6\.0 or newer, which runs no"):
        metric("similarity").measure({"x": "cat"}, {"x": "cat"})
