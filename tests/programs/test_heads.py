"""Heads on disk: the same bytes again, and nothing else is taken for one."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from cuecard.errors import InputError
from cuecard.programs.heads import Head, check_target, choice_of, head_file, parse_head, read_head
from cuecard.programs.schema import Target
from cuecard.programs.state import ReadOut

NAME = "p.route.queue.head.safetensors"


def head(labels: tuple[str, ...] = ("billing", "technical"), width: int = 4, **changes: Any) -> Head:
    drawn = np.random.default_rng(len(labels) * 100 + width)

    def numbers(*shape: int) -> Any:
        return drawn.normal(size=shape).astype(np.float32)

    arrays: dict[str, Any] = {"weights": numbers(len(labels), width), "bias": numbers(len(labels)),
                              "mean": numbers(width), "scale": np.abs(numbers(width)) + 0.5}  # fmt: skip
    return Head(**{"labels": labels, "layer": 3, "pooling": "mean", **arrays, **changes})


def said_of(one: Head) -> dict[str, Any]:
    return {"sha256": one.sha256, "labels": one.labels, "layer": one.layer, "pooling": one.pooling}


def test_the_label_is_that_of_the_highest_logit() -> None:
    one = Head(
        ("a", "b", "c"),
        np.array([[1, 0], [0, 2], [0, 0]], dtype=np.float32),
        np.array([0, 0, 0.5], dtype=np.float32),
        np.array([10, 20], dtype=np.float32),
        np.array([2, 4], dtype=np.float32),
        7,
        "last",
    )
    assert one.logits(np.array([14.0, 22.0])).tolist() == [2.0, 1.0, 0.5]
    assert one.predict(np.array([14.0, 22.0])) == "a"
    assert one.predict(np.array([10.0, 28.0])) == "b"
    assert one.predict(np.array([10.0, 20.0])) == "c"
    assert one.logits(np.array([[14.0, 22.0], [10.0, 28.0]])).tolist() == [[2.0, 1.0, 0.5], [0.0, 4.0, 0.5]]


def test_equal_logits_go_to_the_first_label() -> None:
    flat = head(("x", "y", "z"), bias=np.zeros(3, dtype=np.float32), weights=np.zeros((3, 4), dtype=np.float32))
    assert flat.predict(np.ones(4)) == "x"


def test_heads_are_equal_when_their_files_are() -> None:
    assert head() == head() and hash(head()) == hash(head())
    assert head() != head(layer=4)
    assert head() != head(target="tiny")
    assert head() != head(bias=np.ones(2, dtype=np.float32))
    one = head()
    assert copy.deepcopy({"head": one})["head"] is one


def test_features_of_another_model_are_refused() -> None:
    with pytest.raises(InputError, match="takes 4 numbers and got 5"):
        head().predict(np.zeros(5))


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(words, min_size=1, max_size=6, unique=True), st.integers(1, 9), st.integers(1, 40))
def test_what_is_written_is_read_again(labels: list[str], width: int, layer: int) -> None:
    one = head(tuple(labels), width, layer=layer)
    again = parse_head(one.content, "p")
    assert again.content == one.content == head(tuple(labels), width, layer=layer).content
    assert (again.labels, again.layer, again.pooling) == (one.labels, layer, "mean")
    given_features = np.linspace(-1, 1, width)
    assert again.logits(given_features).tolist() == one.logits(given_features).tolist()
    assert one.sha256 == hashlib.sha256(one.content).hexdigest()


def test_a_file_is_read_as_the_program_says(tmp_path: Path) -> None:
    one = head()
    one.write(tmp_path / NAME)
    assert read_head(tmp_path, NAME, **said_of(one), width=4).content == one.content
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sha256": "0" * 64}, "the file's SHA-256 is"),
        ({"labels": ("technical", "billing")}, "the head's labels: ['billing', 'technical']"),
        ({"labels": ("billing",)}, "the head's labels"),
        ({"layer": 4}, "the head's layer: 3; expected 4"),
        ({"pooling": "last"}, "the head's pooling: 'mean'; expected 'last'"),
        ({"width": 576}, "the head's width: 4; expected 576"),
    ],
)
def test_a_file_that_is_not_as_said_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    one = head()
    one.write(tmp_path / NAME)
    with pytest.raises(InputError) as raised:
        read_head(tmp_path, NAME, **{**said_of(one), **changes})
    assert told in str(raised.value)
    assert NAME in str(raised.value)


@pytest.mark.parametrize(
    "name",
    ["../p.head.safetensors", "/etc/p.head.safetensors", "sub/p.head.safetensors", "..\\p.head.safetensors",
     "p.safetensors", "", ".", "..", "p.head.safetensors\0"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    head().write(tmp_path / "p.head.safetensors")
    inner = tmp_path / "inner"
    inner.mkdir()
    with pytest.raises(InputError, match="the name of a file in the program's own folder"):
        read_head(inner, name, **said_of(head()))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    one, inner = head(), tmp_path / "inner"
    inner.mkdir()
    one.write(tmp_path / NAME)
    (inner / NAME).symlink_to(tmp_path / NAME)
    with pytest.raises(InputError, match="the name of a file in the program's own folder"):
        read_head(inner, NAME, **said_of(one))


def test_a_missing_file_is_told_with_the_nearest(tmp_path: Path) -> None:
    head().write(tmp_path / NAME)
    with pytest.raises(InputError, match="no such file"):
        read_head(tmp_path, "p.route.kind.head.safetensors", **said_of(head()))


def file_of(changes: dict[str, Any], told: dict[str, Any] | None = None, **metadata: str) -> bytes:
    one = head()
    arrays = {"weights": one.weights, "bias": one.bias, "mean": one.mean, "scale": one.scale, **changes}
    about = {"labels": list(one.labels), "layer": 3, "pooling": "mean", **(told or {})}
    kept = {name: array for name, array in arrays.items() if array is not None}
    return save(kept, metadata=metadata or {"cuecard_head": json.dumps(about)})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not a head"),
        (b"\x80\x04pickle", "not a head"),
        (head().content[:-1], "not a head"),
        (file_of({}, format="pt"), "not a head: 'cuecard_head'"),
        (file_of({}, cuecard_head="{"), "not a head"),
        (file_of({}, cuecard_head="[]"), "not a head"),
        (file_of({"bias": None}), "not a head: 'bias'"),
        (file_of({"more": np.zeros(1, dtype=np.float32)}), "it holds bias, mean, more, scale, weights"),
        (file_of({"bias": np.zeros(3, dtype=np.float32)}), "its bias has the shape (3,)"),
        (file_of({"mean": np.zeros(5, dtype=np.float32)}), "its mean has the shape (5,)"),
        (file_of({"weights": np.zeros(4, dtype=np.float32)}), "its weights has the shape (4,)"),
        (file_of({"bias": np.zeros(2)}), "in float64"),
        (file_of({"bias": np.full(2, np.nan, dtype=np.float32)}), "finite"),
        (file_of({"scale": np.zeros(4, dtype=np.float32)}), "its scale is not above 0"),
        (file_of({}, {"labels": [1, 2]}), "its labels are (1, 2)"),
        (file_of({}, {"labels": []}), "its labels are ()"),
        (file_of({}, {"labels": 7}), "not a head"),
        (file_of({}, {"pooling": "max"}), "its pooling is 'max'"),
        (file_of({}, {"target": 7}), "its target is 7"),
        (file_of({}, {"layer": None}), "its layer is None"),
        (file_of({}, {"layer": True}), "its layer is True"),
        (file_of({}, {"layer": None, "pooling": "scores"}), "it takes 4 scores for 2 labels"),
    ],
)
def test_anything_else_is_not_a_head(content: bytes, told: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_head(content, "x.head.safetensors")
    assert told in str(raised.value)
    assert "expected a file that Cuecard wrote" in str(raised.value)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_files_are_input_errors(data: st.DataObject) -> None:
    content = bytearray(head().content)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        again = parse_head(bytes(content), "x")
    except InputError:
        return
    assert again.weights.shape == (2, 4) and len(again.labels) == 2


def test_a_file_is_named_after_its_predictor_and_field_and_content() -> None:
    one = head()
    ending = f"{one.sha256[:12]}.head.safetensors"
    assert head_file("triage", "route.predict", "queue", one) == f"triage.route.predict.queue.{ending}"
    assert head_file("triage", "parts[0]", "queue", one) == f"triage.parts_0_.queue.{ending}"
    assert head_file("t", "../up", "x/y", one) == f"t..._up.x_y.{ending}"
    assert head_file("t", "route", "queue", one) != head_file("t", "route", "queue", head(layer=4))
    assert head_file("t", "route", "queue", one) == head_file("t", "route", "queue", head())


# ---- on another target


def readout(one: Head) -> ReadOut:
    kind: Any = "choice" if one.pooling == "scores" else "head"
    return ReadOut(kind=kind, heads={"queue": choice_of(one, NAME)})


def matrix(target: str | None = None) -> Head:
    return head(width=2, layer=None, pooling="scores", target=target)


def test_the_target_is_kept_and_its_absence_as_well() -> None:
    assert parse_head(head(target="5b0c").content, "p").target == "5b0c"
    assert parse_head(head().content, "p").target is None
    assert b"target" not in head().content


def test_a_head_is_refused_on_another_target_and_says_on_which_it_was_fitted() -> None:
    check_target([readout(head(target="fake")), readout(head()), ReadOut()], FakeEngine())
    with pytest.raises(InputError) as caught:
        check_target([readout(head(target="5b0c"))], FakeEngine(), path="x.compiled.yaml")
    told = str(caught.value)
    assert told.startswith("x.compiled.yaml: the head of the output 'queue' does not go with fake (identity fake)")
    assert "expected the target that it was fitted on: identity 5b0c" in told
    assert "compile the program for this one" in told and "compiled.prompt_only" in told


def test_a_head_that_does_not_say_goes_by_the_compiled_program() -> None:
    made_for = Target(identity="5b0c", name="tiny", dtype="float32", device="cpu")
    with pytest.raises(InputError, match="fitted on: tiny, float32, cpu, identity 5b0c"):
        check_target([readout(head())], FakeEngine(), made_for)
    check_target([readout(head(target="fake"))], FakeEngine(), made_for)
    check_target([readout(head())], FakeEngine(), Target(identity="fake"))


def test_a_matrix_is_warned_of_once_for_each_target(caplog: pytest.LogCaptureFixture) -> None:
    given = [readout(matrix("5b0c"))]
    with caplog.at_level(logging.WARNING, "cuecard"):
        check_target(given, FakeEngine(identity="5b0c"))
        assert not caplog.records
        for engine in (FakeEngine(), FakeEngine(), FakeEngine(identity="third")):
            check_target(given, engine)
    assert len(caplog.records) == 2
    assert "the matrix of the output 'queue' was fitted on another target (identity 5b0c)" in caplog.text
