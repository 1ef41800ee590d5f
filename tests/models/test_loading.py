"""Finding a model by any of its names, loading it, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_kinds import build_kind

from cuecard.errors import InputError, RunError
from cuecard.models import devices, loading
from cuecard.models.loading import LoadedModel, ModelSource, find, load
from tiny import write_tiny_gguf

pytestmark = pytest.mark.usefixtures("cuecard_home")


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


# --- finding ---


def test_a_folder_is_found(tiny_model: Path) -> None:
    assert find(tiny_model) == ModelSource("tiny", tiny_model, "folder", str(tiny_model))
    assert find(str(tiny_model)) == find(tiny_model)


def test_a_folder_is_found_from_where_one_stands(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_model.parent)
    assert find("tiny").folder == tiny_model
    assert find("./tiny").folder == tiny_model


def test_a_catalogue_name_that_is_not_pulled_says_what_to_run() -> None:
    with pytest.raises(InputError) as caught:
        find("smollm2-135m")
    assert str(caught.value) == (
        "the model 'smollm2-135m' is not on this machine\n  run: cuecard models pull smollm2-135m"
    )


def test_a_gguf_file_is_converted_once(
    tiny_model: Path, tmp_path: Path, cuecard_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = write_tiny_gguf(tiny_model, tmp_path / "small.gguf")
    said: list[str] = []
    source = find(gguf, progress=said.append)
    assert (source.name, source.kind) == ("small", "gguf")
    assert source.folder.parent == cuecard_home / "models"
    assert said == ["converting small.gguf to safetensors"]

    monkeypatch.setattr(loading, "convert", None)  # a second conversion would fail
    moved = gguf.rename(tmp_path / "same content.gguf")
    assert find(moved).folder == source.folder
    assert torch.equal(
        load(source, dtype="float32").model.model.embed_tokens.weight,
        load(find(tiny_model), dtype="float32").model.model.embed_tokens.weight,
    )


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "smollm2-135",
            "no model is called 'smollm2-135'; expected smollm2-135m, a folder, a .gguf file, or a hub id ",
        ),
        ("smollm2-135", "(did you mean 'smollm2-135m'?)"),
        ("./nowhere", "./nowhere: there is no such file or folder; expected a folder of safetensors or a .gguf file"),
        ("~/nowhere-at-all", "~/nowhere-at-all: there is no such file or folder"),
        ("models/nothing.gguf", "models/nothing.gguf: there is no such file or folder"),
        ("a/b/c", "a/b/c: there is no such file or folder"),
        (Path("org/name"), "org/name: there is no such file or folder"),
        ("", "no model is called ''"),
    ],
)
def test_what_is_not_there_is_told(reference: str | Path, message: str) -> None:
    with pytest.raises(InputError) as caught:
        find(reference)
    assert message in str(caught.value)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.gguf"
    text.write_text("hello")
    with pytest.raises(InputError) as caught:
        find(text)
    assert str(caught.value) == (f"{text}: this file is not a model; expected a folder of safetensors or a .gguf file")


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def only_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            pickled,
            "its weights are pickles, which can run code when they are read; expected *.safetensors\n  Use a copy",
        ),
        (remove("model.safetensors"), "this folder holds no model; expected config.json and *.safetensors"),
        (only_gguf, "this folder holds no model; expected config.json and *.safetensors\n  Name the file itself: "),
        (remove("config.json"), "there is no config.json beside the weights"),
        (adapter, "there is no config.json beside the weights\n  This is an adapter; merge it"),
        (remove("tokenizer.json"), "there is no tokenizer beside the weights; expected tokenizer.json"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(spoil: Callable[[Path], None], message: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(InputError) as caught:
        find(folder)
    assert str(caught.value).startswith(f"{folder}: {message}")


# --- the hub ---


def test_a_hub_id_is_downloaded_without_pickles(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(tiny_model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    source = find("some-org/tiny-1.0")
    assert source == ModelSource("some-org/tiny-1.0", tiny_model, "hub", "some-org/tiny-1.0")
    assert asked["repo"] == "some-org/tiny-1.0"
    patterns = asked["allow_patterns"]
    assert "*.safetensors" in patterns
    assert not any(
        Path(file).match(pattern) for pattern in patterns for file in ("pytorch_model.bin", "model.pt", "a.py")
    )


def test_a_hub_model_of_pickles_is_refused_by_its_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **options: str(folder))
    with pytest.raises(InputError, match=r"^org/name: this folder holds no model; expected config.json and"):
        find("org/name")


def test_a_failed_download_tells_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repo: str, **options: Any) -> str:
        raise ConnectionError("\nName or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(RunError) as caught:
        find("org/name")
    assert caught.value.message == "org/name could not be downloaded from the hub: Name or service not known"
    assert "give the path of a folder" in str(caught.value.hint)


# --- loading ---


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return load(ModelSource("tiny", tiny_model, "folder", "tiny"), device="cpu", dtype="float32")


def test_a_loaded_model_is_ready_for_inference(loaded: LoadedModel) -> None:
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    assert (loaded.device, loaded.device_kind, loaded.dtype) == ("cpu", "cpu", "float32")
    assert loaded.ends == (0, 2)
    assert loaded.parameters == sum(
        weight.numel() for weight in load_file(loaded.source.folder / "model.safetensors").values()
    )
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("  two\n\nlines ")) == "  two\n\nlines "


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_is_obeyed(dtype: str, tiny_model: Path) -> None:
    model = load(find(tiny_model), dtype=dtype)
    assert model.dtype == dtype
    assert {weight.dtype for weight in model.model.parameters()} == {getattr(torch, dtype)}


def test_nothing_is_printed(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(find(tiny_model))
    assert capfd.readouterr() == ("", "")


def cut_off(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def a_weight_short(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def of_another_shape(folder: Path) -> None:
    change_config(folder, intermediate_size=256)


def no_language_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 64}))


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def with_code(folder: Path) -> None:
    """A configuration that asks for the folder's own code, which leaves a trace if it is ever run."""
    change_config(folder, model_type="homemade", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_off, "the model cannot be loaded: Error while deserializing header: "),
        (a_weight_short, "1 weights of the model are missing: model.layers.1.mlp.up_proj.weight"),
        (
            of_another_shape,
            "the weight model.layers.0.mlp.down_proj.weight has the shape [64, 128]; expected [64, 256] by config.json",
        ),
        (no_language_model, "a model of the kind 'vit' is no language model; expected one that writes text, such as "),
        (broken_config, "the tokenizer cannot be loaded: It looks like the config file at "),
        (broken_tokenizer, "the tokenizer cannot be loaded: KeyError: 'added_tokens'"),
        (with_code, "the configuration cannot be loaded: The repository "),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_told(spoil: Callable[[Path], None], message: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(InputError) as caught:
        load(find(folder))
    assert str(caught.value).startswith(f"{folder}: {message}")


def test_an_encoder_of_speech_is_no_language_model(folder: Path) -> None:
    change_config(folder, model_type="whisper", is_encoder_decoder=True)
    with pytest.raises(InputError, match="a model of the kind 'whisper' is no language model"):
        load(find(folder))


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    with_code(folder)
    with pytest.raises(InputError, match="\n  Code that comes with a model is not run"):
        load(find(folder))
    assert not (folder / "ran").exists()


def test_too_little_memory_is_told(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(loading, "_weights", full)
    with pytest.raises(RunError, match="not enough memory to load tiny: tried to allocate 2 GiB"):
        load(find(tiny_model))


# --- encoder-decoders ---


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_kind(tmp_path_factory.mktemp("kinds") / "t5", "t5")


def test_an_embedding_that_a_model_shares_with_itself_is_not_missing(t5: Path) -> None:
    assert [name for name in load_file(t5 / "model.safetensors") if "embed" in name or "head" in name] == []
    model = load(find(t5), dtype="float32").model
    (shared,) = {
        id(part.weight): part.weight for part in (model.shared, model.lm_head, model.decoder.embed_tokens)
    }.values()
    assert torch.equal(shared, load_file(t5 / "model.safetensors")["shared.weight"])


def test_an_output_layer_of_its_own_is_read(t5: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(t5, tmp_path / "flan"))
    weights = load_file(folder / "model.safetensors")
    head = weights["shared.weight"] + 1
    save_file({**weights, "lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    model = load(find(folder), dtype="float32").model
    assert torch.equal(model.lm_head.weight, head)
    assert torch.equal(model.shared.weight, weights["shared.weight"])
    assert capfd.readouterr() == ("", "")


def test_an_encoder_decoder_without_its_embedding_is_refused(t5: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(t5, tmp_path / "spoilt"))
    weights = load_file(folder / "model.safetensors")
    del weights["shared.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="4 weights of the model are missing: decoder.embed_tokens.weight"):
        load(find(folder))


# --- devices and dtypes ---


def test_an_unknown_device_is_told(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=1)
    with pytest.raises(InputError) as caught:
        load(find(tiny_model), device="cuda:1")
    assert str(caught.value) == (
        "device: there is no device 'cuda:1' on this machine; expected one of auto, cuda:0, cpu"
        " (did you mean 'cuda:0'?)"
    )


def test_an_unknown_dtype_is_told(tiny_model: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(find(tiny_model), device="cpu", dtype="bfloat")
    assert str(caught.value) == (
        "dtype: there is no dtype 'bfloat'; expected one of auto, bfloat16, float16, float32 (did you mean 'bfloat16'?)"
    )


@pytest.mark.parametrize(
    ("cuda", "mps", "asked", "chosen"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (2, False, "auto", "cuda:0"),
        (2, False, "cuda", "cuda:0"),
        (2, False, "cuda:1", "cuda:1"),
        (2, True, "cpu", "cpu"),
        (0, True, "mps", "mps"),
    ],
)
def test_the_best_device_is_chosen(
    cuda: int, mps: bool, asked: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, cuda=cuda, mps=mps)
    assert devices.choose_device(asked) == chosen


@pytest.mark.parametrize(
    ("device", "able", "chosen"),
    [
        ("cpu", True, "bfloat16"),
        ("cpu", False, "float32"),
        ("cuda:0", True, "bfloat16"),
        ("cuda:0", False, "float16"),
        ("mps", True, "bfloat16"),
        ("mps", False, "float16"),
    ],
)
def test_the_best_dtype_is_chosen(device: str, able: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, bfloat16=able)
    assert devices.choose_dtype("auto", device) == chosen
    assert devices.choose_dtype("float32", device) == "float32"


def machine(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False, bfloat16: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: bfloat16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": bfloat16})


# --- the default model ---


@pytest.fixture(scope="module")
def default(default_model: Path) -> LoadedModel:
    return load(ModelSource("smollm2-135m", default_model, "catalogue", "smollm2-135m"), device="cpu")


def continued(model: LoadedModel, prompt: str, tokens: int) -> str:
    ids = torch.tensor([model.tokenizer.encode(prompt, add_special_tokens=False)])
    out = model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return str(model.tokenizer.decode(out[0][ids.shape[1] :]))


@pytest.mark.model
def test_the_default_model_knows_the_capital_of_france(default: LoadedModel) -> None:
    assert continued(default, "The capital of France is", 2).startswith(" Paris")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = default.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert continued(default, prompt, 30) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.model
def test_the_default_model_is_what_its_makers_describe(default: LoadedModel) -> None:
    assert default.parameters == 134_515_008
    assert default.config.max_position_embeddings == 8192
    assert default.ends == (0, 2)
    assert default.tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.mark.model
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("<|im_start|>user\n", ["<|im_start|>", "user", "Ċ"]),
        ("a\n\n1. b", ["a", "ĊĊ", "1", ".", "Ġb"]),
        ("at  2026", ["at", "ĠĠ", "2", "0", "2", "6"]),
        (" lead", ["Ġlead"]),
    ],
)
def test_the_default_model_splits_text_as_it_was_trained(text: str, tokens: list[str], default: LoadedModel) -> None:
    ids = default.tokenizer.encode(text, add_special_tokens=False)
    assert default.tokenizer.convert_ids_to_tokens(ids) == tokens
    assert default.tokenizer.decode(ids) == text


@pytest.mark.model
def test_the_default_model_has_its_chat_template(default: LoadedModel) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert default.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
