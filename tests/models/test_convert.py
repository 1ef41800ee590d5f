"""A GGUF file becomes the model that it was written from: weights, tokenizer, chat template and end tokens."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from cuecard.errors import InputError
from cuecard.models.convert import convert
from tiny import write_tiny_gguf


@pytest.fixture(scope="module")
def converted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, gone through a float GGUF file and back."""
    folder = tmp_path_factory.mktemp("converted")
    convert(write_tiny_gguf(tiny_model, folder.parent / "tiny.gguf"), folder)
    return folder


@cache
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.arange(40).reshape(2, 20)).logits


def test_float_weights_come_back_as_they_were(tiny_model: Path, converted: Path) -> None:
    torch.testing.assert_close(logits(converted), logits(tiny_model), rtol=0, atol=1e-5)


def test_quantized_weights_become_bfloat16_and_stay_close(tiny_model: Path, tmp_path: Path) -> None:
    gguf = write_tiny_gguf(tiny_model, tmp_path / "tiny.gguf", quantized=True)
    folder = tmp_path / "out"
    folder.mkdir()
    convert(gguf, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    alike = torch.cosine_similarity(logits(folder), logits(tiny_model), dim=-1)
    assert alike.min() > 0.99


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(
        alphabet=st.sampled_from("ab Z\n\t 0123456789.,'é✓你🙂<|>") | st.characters(codec="utf-8"), max_size=40
    )
)
def test_text_becomes_the_same_ids_and_comes_back(text: str, tiny_model: Path, converted: Path) -> None:
    ids = tokenizer(converted).encode(text, add_special_tokens=False)
    assert ids == tokenizer(tiny_model).encode(text, add_special_tokens=False)
    assert tokenizer(converted).decode(ids) == text


def test_special_tokens_template_and_ends_come_back(tiny_model: Path, converted: Path) -> None:
    made, true = tokenizer(converted), tokenizer(tiny_model)
    assert made.encode("<|im_start|><|im_end|><|endoftext|>", add_special_tokens=False) == [1, 2, 0]
    assert made.chat_template == true.chat_template
    assert made.model_max_length == 2048
    model = AutoModelForCausalLM.from_pretrained(converted)
    assert model.generation_config.eos_token_id == [2, 0]


def test_each_digit_stands_alone(converted: Path) -> None:
    """Which leaves the blanks before a number together; the GPT-2 rule would give the last one to the number."""
    assert tokenizer(converted).backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12") == [
        ("a", (0, 1)),
        ("ĠĠ", (1, 3)),
        ("1", (3, 4)),
        ("2", (4, 5)),
    ]


def test_a_splitter_that_nobody_knows_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    gguf = write_tiny_gguf(tiny_model, tmp_path / "tiny.gguf", splitter="of-tomorrow")
    with pytest.raises(InputError) as caught:
        convert(gguf, tmp_path)
    assert str(caught.value) == (
        f"{gguf}: its tokenizer splits text by the rule 'of-tomorrow', which is not known here\n"
        "  Use the model's folder of safetensors instead."
    )


@pytest.mark.parametrize("keep", [4, 100, 20_000, 300_000])
def test_a_cut_off_file_is_refused(keep: int, tiny_model: Path, tmp_path: Path) -> None:
    gguf = write_tiny_gguf(tiny_model, tmp_path / "tiny.gguf")
    gguf.write_bytes(gguf.read_bytes()[:keep])
    with pytest.raises(InputError, match="cannot be converted: .*; expected a whole GGUF file") as caught:
        convert(gguf, tmp_path)
    assert caught.value.path == str(gguf)


def test_nothing_is_printed(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gguf = write_tiny_gguf(tiny_model, tmp_path / "tiny.gguf")
    capfd.readouterr()
    convert(gguf, tmp_path)
    assert capfd.readouterr() == ("", "")
