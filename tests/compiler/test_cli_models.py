"""`cuecard models`: listing, fetching and describing, with a cache of the test's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_kinds import build_kind

from cuecard.compiler.cli.weightless import count_parameters, model_facts
from cuecard.errors import InputError
from cuecard.models.loading import ModelSource
from cuecard.models.target import target

from .cli_cases import Said, cuecard


def test_a_known_model_that_is_not_here(capsys: pytest.CaptureFixture[str], cuecard_home: Path) -> None:
    assert cuecard(capsys, "models", "list") == Said(
        0,
        "name          parameters  on disk  folder\n"
        "smollm2-135m  134.5 M     -        not here; run: cuecard models pull smollm2-135m\n",
        "",
    )


def test_converted_models_are_listed_by_their_file(capsys: pytest.CaptureFixture[str], cuecard_home: Path) -> None:
    folder = cuecard_home / "models" / "gguf-0123"
    folder.mkdir(parents=True)
    (folder / "source.json").write_text(json.dumps({"name": "mine"}), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"x" * 1983)
    (cuecard_home / "models" / "gguf-broken").mkdir()
    lines = cuecard(capsys, "models", "list").out.splitlines()
    assert [line.split() for line in lines[2:]] == [["mine.gguf", "2", "kB", str(folder)]]


def test_pulling_says_every_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cuecard_home: Path
) -> None:
    def pull(name: str, *, progress: Any) -> Path:
        progress(f"asking pip for {name}")
        progress("converting")
        return Path()

    monkeypatch.setattr("cuecard.models.pull.pull", pull)
    assert cuecard(capsys, "models", "pull", "some") == Said(0, "", "asking pip for some\nconverting\n")


def test_what_a_model_is_and_needs(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    said = cuecard(capsys, "models", "info", tiny_model, "--device", "cpu", "--dtype", "float32")
    facts = dict(line.split("  ", 1) for line in said.out.splitlines())
    facts = {name: value.strip() for name, value in facts.items()}
    assert said.code == 0
    assert len(facts.pop("identity")) == 32
    assert facts == {
        "name": "tiny",
        "folder": str(tiny_model),
        "parameters": "139,584",
        "layers": "2",
        "context window": "2,048 tokens",
        "dtype": "float32",
        "device": "cpu",
        "weights": "558 kB",
        "KV cache": "512 bytes a token, 1.05 MB a full context window",
    }


def test_the_facts_are_those_of_the_open_model(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    opened = target(str(tiny_model), device="cpu", dtype="float32").description
    out = cuecard(capsys, "models", "info", tiny_model, "--device", "cpu", "--dtype", "float32").out
    assert f"{opened.parameters:,}" in out
    assert opened.identity in out
    assert f"{opened.context_window:,} tokens" in out


# What is left in the KV cache for one token: keys and values, 2 decoder layers of width 32, 4 bytes each; Mamba has none.
CACHES = {"t5": 512, "bart": 512, "bloom": 512, "mamba": 0}


@pytest.mark.parametrize("kind", CACHES)
def test_the_facts_of_a_model_that_shares_no_prefixes(
    kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = build_kind(tmp_path / kind, kind)
    opened = target(folder, device="cpu", dtype="float32").description
    said = cuecard(capsys, "models", "info", folder, "--device", "cpu", "--dtype", "float32")
    facts = {name: value.strip() for name, value in (line.split("  ", 1) for line in said.out.splitlines())}
    assert (said.code, said.err) == (0, "")
    assert facts["parameters"] == f"{opened.parameters:,}"
    assert facts["layers"] == "2"
    assert facts["context window"] == f"{opened.context_window:,} tokens"
    assert facts["identity"] == opened.identity
    assert facts["note"] == opened.extra["notice"]
    assert facts["note"].startswith(f"{kind} shares no prefixes: it ")
    if CACHES[kind]:
        assert facts["KV cache"].startswith(f"{CACHES[kind]} bytes a token, ")
    else:
        assert facts["KV cache"] == "none: its state does not grow"


def test_an_output_layer_of_its_own_counts(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = build_kind(tmp_path / "flan", "t5")
    weights = load_file(folder / "model.safetensors")
    shared = weights["shared.weight"]
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    copies = {"encoder.embed_tokens.weight": shared.clone(), "decoder.embed_tokens.weight": shared.clone()}
    for head in (shared.clone(), shared + 1):
        held = {**weights, **copies, "lm_head.weight": head, unused: shared[:4].clone()}
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
        source = ModelSource("flan", folder, "folder", "flan")
        opened = target(folder, device="cpu", dtype="float32").description
        assert model_facts(source, device="cpu", dtype="float32").parameters == opened.parameters


def test_the_cache_of_recurrent_layers_does_not_grow(tmp_path: Path) -> None:
    from transformers import RecurrentGemmaConfig

    folder = build_kind(tmp_path / "mixed", "bloom")
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 1}
    RecurrentGemmaConfig(**sizes, lru_width=32, attention_window_size=64).save_pretrained(folder)
    facts = model_facts(ModelSource("mixed", folder, "folder", "mixed"), device="cpu", dtype="float32")
    assert (facts.layers, facts.cache_per_token) == (3, 2 * 1 * 8 * 4)  # one layer of three attends, with one head


def test_shared_and_sharded_weights_count_once(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"embed.weight": torch.zeros(4, 3), "lm_head.weight": torch.zeros(4, 3)}, tmp_path / "a.safetensors")
    save_file({"mlp.weight": torch.zeros(5)}, tmp_path / "b.safetensors")
    save_file({"again": torch.zeros(100)}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": {"embed.weight": "a.safetensors", "mlp.weight": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert (count_parameters(tmp_path), count_parameters(tmp_path, tied=True)) == (29, 17)


@pytest.mark.parametrize("text", ["no json", "[]", '{"weight_map": 3}'])
def test_a_broken_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="not an index of weights"):
        count_parameters(tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        count_parameters(tmp_path)
