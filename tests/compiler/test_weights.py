"""Weights in fewer bits, asked for by a spec or on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuecard.compiler.from_spec import spec_target, with_model
from cuecard.errors import InputError
from cuecard.programs.schema import ModelSpec
from cuecard.programs.spec import load_spec

from .cli_cases import cuecard, write_spec

pytestmark = pytest.mark.usefixtures("cuecard_home")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def spec(model: str) -> Path:
    return write_spec(Path(), model=f"model: {model}")


def test_a_spec_says_its_weights_and_the_caller_may_say_others(tiny_model: Path) -> None:
    read = load_spec(spec(f"{{id: {tiny_model}, dtype: float32, device: cpu, weights: int8}}"))
    assert spec_target(read).description.dtype == "float32, int8 weights"
    assert spec_target(read, weights="int4").description.dtype == "float32, int4 weights"
    assert spec_target(read, weights="full").description.dtype == "float32"
    other = spec_target(read, str(tiny_model), device="cpu", dtype="float32").description
    assert other.dtype == "float32", "another model does not take over what the spec says of its own"


def test_the_weights_stand_in_the_compiled_program() -> None:
    read = load_spec(spec("{id: small, weights: int8}"))
    assert with_model(read, None, "float32").model == ModelSpec(id="small", dtype="float32", weights="int8")
    assert with_model(read, None, None, "int4").model == ModelSpec(id="small", weights="int4")
    assert with_model(read, "org/name", None, "int4").model == ModelSpec(id="org/name", weights="int4")
    assert with_model(load_spec(spec("http://a")), None, None, "int8").model == ModelSpec(server="http://a")


def test_a_server_has_its_own_weights_which_the_defaults_name_is_no_word_against() -> None:
    read = load_spec(spec("http://127.0.0.1:9"))
    with pytest.raises(InputError, match="found the weights 'int8' for a model server"):
        spec_target(read, weights="int8")
    with pytest.raises(Exception, match="127.0.0.1:9"):  # it is asked, and not there
        spec_target(read, weights="full")


def test_what_a_spec_can_not_say_is_told_with_its_line() -> None:
    with pytest.raises(InputError, match=r"model\.weights: found 'int6'"):
        load_spec(spec("{id: small, weights: int6}"))
    with pytest.raises(InputError, match=r"found 'weights' beside 'server'\n  The server has its own weights\."):
        load_spec(spec("{server: 'http://a', weights: int8}"))


def test_a_program_is_compiled_with_the_weights_that_are_asked_for(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spec(f"{{id: {tiny_model}, dtype: float32, device: cpu}}")
    said = cuecard(capsys, "compile", path, "--weights", "int8", "--metric-calls", 8)
    assert said.code == 0, said.err
    assert said.err.startswith("triage on tiny (float32, int8 weights, cpu)\n")
    made = load_spec("triage.compiled.yaml")
    assert made.model is not None
    assert (made.model.dtype, made.model.weights) == ("float32", "int8")
    assert "float32, int8 weights, cpu" in cuecard(capsys, "check", "triage.compiled.yaml").out
    same = cuecard(capsys, "run", "triage.compiled.yaml", "--ticket", "x")
    assert "warning" not in same.err
    other = cuecard(capsys, "run", "triage.compiled.yaml", "--ticket", "x", "--weights", "full")
    assert other.err.startswith(
        "warning: the program was compiled for another target (tiny, float32, int8 weights, cpu); "
        "this is tiny, float32, cpu\n"
    )


def test_an_unknown_kind_and_a_server_are_refused(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = spec(f"{{id: {tiny_model}, device: cpu}}")
    said = cuecard(capsys, "run", path, "--ticket", "x", "--weights", "int16")
    assert (said.code, said.out) == (2, "")
    assert "there are no weights of the kind 'int16'; expected one of full, int8, int4" in said.err
    said = cuecard(capsys, "run", path, "--model", "http://localhost:9", "--ticket", "x", "--weights", "int8")
    assert said.code == 2
    assert "found the weights 'int8' for a model server" in said.err
