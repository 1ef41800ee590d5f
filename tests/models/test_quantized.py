"""Weights in 8 and 4 bits: how near they are, that every way to multiply gives the same, and what a target says of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_kinds import build_kind
from torch import Tensor, nn

import cuecard
from cuecard.compiler.cli import main
from cuecard.compiler.cli.screen import bytes_text
from cuecard.compiler.cli.weightless import model_facts, weights_by_kind
from cuecard.errors import InputError
from cuecard.models.encoder_decoder import EncoderDecoderEngine
from cuecard.models.engine import Decoding, Engine, GenerateRequest, Generation, ScoreRequest, Scores
from cuecard.models.identity import identity
from cuecard.models.loading import find, load, load_skeleton
from cuecard.models.local import ENGINE_VERSION, LocalEngine
from cuecard.models.quantized import (
    GROUP,
    KINDS,
    WEIGHTS,
    Int4Linear,
    Int8Linear,
    QuantizedLinear,
    check_weights,
    parameters_of,
    quantize,
    saved_bytes,
    weight_bytes,
    weights_of,
)
from cuecard.models.target import target_of

from .engine_conformance import EngineConformance
from .helpers import engine_over, family, plain_greedy, plain_logprobs, random_model

pytestmark = pytest.mark.usefixtures("cuecard_home")

BOTH = sorted(KINDS)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def random_weight(outputs: int, inputs: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Channels of very different sizes."""
    source = torch.Generator().manual_seed(seed)
    sizes = 10 ** torch.empty(outputs, 1).uniform_(-2, 1, generator=source)
    return (torch.randn(outputs, inputs, generator=source) * sizes).to(dtype)


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in KINDS.values():
        monkeypatch.setattr(kind, "_has_kernel", lambda self: False)


# Rounding


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 70), st.sampled_from(DTYPES))
def test_8_bits_are_half_a_step_away_at_most(seed: int, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    weight = random_weight(outputs, inputs, dtype, seed)
    made = Int8Linear(weight, None)
    error = (made.levels.float() * made.scales.float()[:, None] - weight.float()).abs().amax(dim=1)
    largest = weight.float().abs().amax(dim=1)
    assert (error <= made.scales.float() / 2 * 1.0001).all()
    assert (made.scales.float() <= largest / 127 * 1.01).all()
    assert made.levels.dtype == torch.int8
    assert (made.levels.abs().amax(dim=1) >= 126).all(), "the whole range is used"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 3), st.sampled_from(DTYPES))
def test_4_bits_are_half_a_step_away_at_most(seed: int, outputs: int, groups: int, dtype: torch.dtype) -> None:
    weight = random_weight(outputs, groups * GROUP, dtype, seed)
    made = Int4Linear(weight, None)
    scale, zero = (part[..., None] for part in made.scales.transpose(0, 1).float().unbind(2))
    error = (made.weight.float() - weight.float()).view(outputs, groups, GROUP).abs()
    rounding = torch.finfo(dtype).eps * (zero.abs() + 8 * scale)  # of the zero, and of the weight made again
    assert (error <= scale / 2 + rounding).all()
    grouped = weight.float().view(outputs, groups, GROUP)
    spread = grouped.amax(dim=2, keepdim=True) - grouped.amin(dim=2, keepdim=True)
    assert (scale <= spread / 15 * 1.01).all()


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("value", [0.0, 0.75, -3.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_all_alike_stay_so(kind: type[QuantizedLinear], value: float, dtype: torch.dtype) -> None:
    made = kind(torch.full((64, 64), value, dtype=dtype), None)
    assert torch.allclose(made.weight.float(), torch.full((64, 64), value), rtol=0.01, atol=0)
    assert torch.isfinite(made(torch.ones(1, 64, dtype=dtype))).all()


@pytest.mark.parametrize("kind", KINDS.values())
def test_the_weights_that_are_rounded_are_left_alone(kind: type[QuantizedLinear]) -> None:
    weight = random_weight(64, 64)
    before = weight.clone()
    kind(weight, None)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_size_is_that_of_the_buffers(kind: type[QuantizedLinear], dtype: torch.dtype) -> None:
    for outputs, inputs in ((64, 64), (48, 96)):
        made = kind(random_weight(outputs, inputs, dtype), None)
        held = sum(buffer.numel() * buffer.element_size() for buffer in made.buffers())
        assert held == kind.size(outputs, inputs, dtype.itemsize)


# Products


def product(made: QuantizedLinear, states: Tensor) -> Tensor:
    """In float64, from the weights as they are held."""
    if isinstance(made, Int8Linear):
        weight = made.levels.double() * made.scales.double()[:, None]
    else:
        weight = made.weight.double()
    bias = 0 if made.bias is None else made.bias.double()
    return states.double() @ weight.T + bias


SHAPES = [(64, 64), (192, 96), (16, 64), (7, 64), (64, 40), (5, 3)]


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("kernels", [True, False])
@torch.inference_mode()
def test_every_way_to_multiply_gives_the_product(
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    kind: type[QuantizedLinear],
    kernels: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not kind.fits(outputs, inputs):
        pytest.skip("it is left as it is")
    if not kernels:
        without_kernels(monkeypatch)
    monkeypatch.setattr(kind, "packed_rows", 8)
    source = torch.Generator().manual_seed(1)
    weight = torch.randn(outputs, inputs, generator=source).to(dtype)
    for bias in (None, nn.Parameter(torch.randn(outputs, generator=source).to(dtype), requires_grad=False)):
        made = kind(weight, bias)
        for rows in (1, 3, 8, 9, 33):
            states = torch.randn(rows, inputs, generator=source).to(dtype)
            found, expected = made(states), product(made, states)
            assert found.dtype == dtype
            error = (found.double() - expected).norm() / expected.norm()
            assert error < 2 * torch.finfo(dtype).eps, rows


def test_torch_has_its_kernels_on_a_cpu() -> None:
    for kind, rows in ((Int8Linear, 1), (Int4Linear, 1)):
        made = kind(random_weight(64, 64, torch.bfloat16), None)
        assert made.packs, f"{kind.kind} is slow here"
        assert made.packed_rows >= rows
        assert not kind(random_weight(64, 64, torch.float32), None).packs
    assert not Int8Linear(random_weight(64, 40, torch.bfloat16), None).packs, "its kernel would read past the end"


@pytest.mark.parametrize("size", [(64, 32), (64, 96), (192, 64), (576, 192)])
def test_packed_bytes_give_the_same_weight_as_plain_ones(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = random_weight(*size, torch.bfloat16)
    packed = Int4Linear(weight, None)
    without_kernels(monkeypatch)
    plain = Int4Linear(weight, None)
    assert packed.packs and not plain.packs
    assert not torch.equal(packed.pairs, plain.pairs)
    assert torch.equal(packed.weight, plain.weight)


def test_bytes_packed_in_an_unknown_way_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(64, 64, torch.bfloat16)
    expected = Int4Linear(weight, None).weight
    monkeypatch.setattr("cuecard.models.quantized.BLOCKS", (16,))
    made = Int4Linear(weight, None)
    if made.packs:
        pytest.skip("torch packs 16 channels together here")
    assert torch.equal(made.weight, expected)


@pytest.mark.parametrize("kind", KINDS.values())
def test_states_may_lie_anywhere_and_have_any_shape(kind: type[QuantizedLinear]) -> None:
    made = kind(random_weight(64, 64, torch.bfloat16), None)
    held = torch.randn(1000).to(torch.bfloat16)
    states = held[3 : 3 + 384].view(2, 3, 64)
    assert states.data_ptr() % 64
    assert made(states).shape == (2, 3, 64)
    assert torch.equal(made(states), made(states.clone()))
    turned = torch.randn(64, 5).to(torch.bfloat16).t()
    assert torch.equal(made(turned), made(turned.contiguous()))
    assert made(states[:0]).shape == (0, 3, 64)


# Models

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2", "gemma3", "olmo2", "gpt_neox", "opt")


@pytest.mark.parametrize("weights", BOTH)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_all_matrices_of_the_layers_are_rounded_and_nothing_else(kind: str, weights: str) -> None:
    model = random_model(kind, dtype=torch.bfloat16)
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    full = weight_bytes(model)
    saved = saved_bytes(model, weights, name=kind, itemsize=2)
    assert weights_of(model) == "full"
    assert quantize(model, weights, name=kind) is model
    assert weights_of(model) == weights
    assert (model.get_output_embeddings(), model.get_input_embeddings()) == (head, table)
    after = dict(model.named_parameters())
    assert all(torch.equal(before[name], weight) for name, weight in after.items())
    gone = {name: weight for name, weight in before.items() if name not in after}
    assert all(weight.dim() == 2 and re.search(r"\.[01]\.", name) for name, weight in gone.items())
    left = [name for name, weight in after.items() if weight.dim() > 1]
    assert not [name for name in left if re.search(r"\.\d+\.", name)]
    assert parameters_of(model) == sum(weight.numel() for weight in before.values())
    assert weight_bytes(model) == full - saved
    share = saved / sum(2 * weight.numel() for weight in gone.values())
    assert share == pytest.approx({"int8": 0.5, "int4": 0.6875}[weights], abs=0.04)


@pytest.mark.parametrize("weights", BOTH)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gemma3"])
def test_greedy_is_what_transformers_generates_with_the_same_weights(kind: str, weights: str) -> None:
    full, model = random_model(kind), quantize(random_model(kind), weights, name=kind)
    plain = copy.deepcopy(model)
    prompts = family((0, 60, 127, 128, 129, 200))
    engine = engine_over(model)
    results = engine.generate([GenerateRequest(prompt, Decoding(max_tokens=10)) for prompt in prompts])
    found = [result.samples[0].tokens for result in results if isinstance(result, Generation)]
    assert found == [plain_greedy(plain, prompt, 10) for prompt in prompts]
    (scores,) = engine.score([ScoreRequest(prompts[2], ((5, 6, 7),))])
    assert isinstance(scores, Scores)
    assert scores.logprobs[0] == pytest.approx(plain_logprobs(plain, prompts[2], (5, 6, 7)), abs=1e-4)
    assert scores.logprobs[0] != pytest.approx(plain_logprobs(full, prompts[2], (5, 6, 7)), abs=1e-6)


def test_a_matrix_that_two_modules_have_is_rounded_once() -> None:
    model = random_model("llama")
    first, second = (layer.mlp for layer in model.model.layers)
    second.up_proj = first.up_proj
    quantize(model, "int8", name="shared")
    assert isinstance(first.up_proj, Int8Linear)
    assert first.up_proj is second.up_proj


@pytest.mark.parametrize("weights", BOTH)
def test_a_copy_computes_the_same(weights: str) -> None:
    model = quantize(random_model("llama", dtype=torch.bfloat16), weights, name="llama")
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(model(input_ids=ids).logits, copy.deepcopy(model)(input_ids=ids).logits)


# Targets


@pytest.fixture(scope="module")
def opened(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], cuecard.Target]:
    cache, held = tmp_path_factory.mktemp("cache"), {}

    def target(weights: str, dtype: str = "float32") -> cuecard.Target:
        if (weights, dtype) not in held:
            held[weights, dtype] = cuecard.target(tiny_model, device="cpu", dtype=dtype, weights=weights, cache=cache)
        return held[weights, dtype]

    return target


Opened = Callable[..., Any]


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    return {weights: engine_over(quantize(random_model("llama"), weights, name="llama")) for weights in KINDS}


class TestInt8Engine(EngineConformance):
    @pytest.fixture
    def engine(self, engines: dict[str, Engine]) -> Engine:
        return engines["int8"]


class TestInt4Engine(EngineConformance):
    @pytest.fixture
    def engine(self, engines: dict[str, Engine]) -> Engine:
        return engines["int4"]


@pytest.mark.parametrize("weights", BOTH)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_target_says_what_its_weights_are(weights: str, dtype: str, opened: Opened) -> None:
    full, found = opened("full", dtype).description, opened(weights, dtype).description
    assert isinstance(opened(weights, dtype).engine, LocalEngine)
    assert (full.dtype, found.dtype) == (dtype, f"{dtype}, {weights} weights")
    assert (found.parameters, found.context_window) == (full.parameters, full.context_window)
    assert found.identity != full.identity
    assert target_of(opened(weights, dtype).engine).description == found


def test_every_kind_of_weights_has_an_identity_of_its_own(opened: Opened, tiny_model: Path) -> None:
    found = [opened(weights, dtype).description.identity for weights in WEIGHTS for dtype in ("float32", "bfloat16")]
    assert len(set(found)) == len(found)
    plain = identity(tiny_model, dtype="float32", device_kind="cpu", engine_version=ENGINE_VERSION)
    assert opened("full").description.identity == plain, "what was recorded with full weights still holds"


@pytest.mark.parametrize("weights", BOTH)
def test_the_same_weights_have_the_same_bytes_again(weights: str, tiny_model: Path, opened: Opened) -> None:
    first = opened(weights, "bfloat16").engine.model
    second = load(find(tiny_model), device="cpu", dtype="bfloat16", weights=weights).model
    assert not second.training
    assert not any(weight.requires_grad for weight in second.parameters())
    names = [name for name, part in first.named_modules() if isinstance(part, QuantizedLinear)]
    assert len(names) == 14
    for name in names:
        one, two = (dict(model.get_submodule(name).named_buffers()) for model in (first, second))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("weights", BOTH)
def test_the_same_requests_have_the_same_results_in_bfloat16(weights: str, opened: Opened, tiny_model: Path) -> None:
    prompts = family((0, 60, 127, 128, 129, 200))
    requests = [GenerateRequest(prompt, Decoding(max_tokens=10)) for prompt in prompts]
    again = cuecard.target(tiny_model, device="cpu", dtype="bfloat16", weights=weights).engine
    assert opened(weights, "bfloat16").engine.generate(requests) == again.generate(requests)


@pytest.mark.parametrize("weights", BOTH)
def test_packed_and_unpacked_rows_score_alike_in_bfloat16(
    weights: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for rows in (0, 10**6):
        monkeypatch.setattr(KINDS[weights], "packed_rows", rows)
        engine = cuecard.target(tiny_model, device="cpu", dtype="bfloat16", weights=weights).engine
        requests = [ScoreRequest(prompt, ((5, 6, 7), (8,))) for prompt in family((0, 60, 128, 200))]
        found.append([total for scores in engine.score(requests) for total in scores.totals])
    assert found[0] == pytest.approx(found[1], abs=0.3)
    assert found[0] != found[1]


@pytest.mark.parametrize("weights", BOTH)
def test_rounded_weights_score_texts_like_full_ones(weights: str, opened: Opened) -> None:
    tokenizer = opened("full").engine.tokenizer
    prompt = tokenizer.start() + tokenizer.encode("A customer was charged twice")
    request = ScoreRequest(prompt, tuple((token,) for token in range(5, 60)))
    full, found = (torch.tensor(opened(kind).engine.score([request])[0].totals) for kind in ("full", weights))
    together = torch.corrcoef(torch.stack([full, found]))[0, 1]
    assert {"int8": 0.999, "int4": 0.9}[weights] < together < 1


@pytest.mark.parametrize("kind", ["t5", "flan-t5", "bart"])
@pytest.mark.parametrize("weights", BOTH)
def test_an_encoder_decoder_computes_with_them(kind: str, weights: str, tmp_path: Path) -> None:
    folder = build_kind(tmp_path / kind, kind)
    found = cuecard.target(folder, device="cpu", dtype="float32", weights=weights)
    engine = found.engine
    assert isinstance(engine, EncoderDecoderEngine)
    assert weights_of(engine.model) == weights
    if kind != "bart":
        assert type(engine.model.encoder.block[0].layer[-1].DenseReluDense.wo) is nn.Linear, "its authors keep it"
    prompt, text = engine.tokenizer.start() + engine.tokenizer.encode("A customer was charged twice"), (5, 6, 7)
    (scores,) = engine.score([ScoreRequest(prompt, (text,))])
    assert isinstance(scores, Scores)
    plain = load(find(folder), device="cpu", dtype="float32", weights=weights)
    settings = plain.model.generation_config
    prefix = [token for token in (settings.decoder_start_token_id, settings.forced_bos_token_id) if token is not None]
    ids, written = torch.tensor([[*prompt, plain.config.eos_token_id]]), torch.tensor([[*prefix, *text]])
    logprobs = torch.log_softmax(plain.model(input_ids=ids, decoder_input_ids=written).logits[0].double(), dim=-1)
    wanted = [float(logprobs[len(prefix) - 1 + place, token]) for place, token in enumerate(text)]
    assert scores.logprobs[0] == pytest.approx(wanted, abs=1e-4)
    assert isinstance(engine.generate([GenerateRequest(prompt, Decoding(max_tokens=4))])[0], Generation)


# What they need, without reading them


@pytest.mark.parametrize("kind", ["tiny", "t5", "bart", "bloom"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_facts_are_those_of_the_open_model(kind: str, dtype: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = tiny_model if kind == "tiny" else build_kind(tmp_path / kind, kind)
    source = find(folder)
    for weights in WEIGHTS:
        found = cuecard.target(folder, device="cpu", dtype=dtype, weights=weights)
        facts = model_facts(source, device="cpu", dtype=dtype, weights=weights)
        assert facts.weights == weight_bytes(found.engine.model)
        assert facts.identity == found.description.identity
        assert facts.parameters == found.description.parameters
        assert weights_by_kind(source, facts)[weights] == facts.weights


def test_the_skeleton_of_a_model_holds_no_weights(tiny_model: Path) -> None:
    model = load_skeleton(find(tiny_model))
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


@pytest.mark.parametrize("weights", BOTH)
def test_models_info_says_what_they_need(
    weights: str, opened: Opened, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["models", "info", str(tiny_model), "--device", "cpu", "--dtype", "bfloat16", "--weights", weights]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    facts = {name: value.strip() for name, value in (line.split("  ", 1) for line in lines)}
    target = opened(weights, "bfloat16")
    assert facts["dtype"] == f"bfloat16, {weights} weights" == target.description.dtype
    assert facts["weights"] == bytes_text(weight_bytes(target.engine.model))
    assert facts["identity"] == target.description.identity


def test_models_info_measures_every_kind(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["models", "info", str(tiny_model), "--device", "cpu", "--dtype", "bfloat16", "--measure"]
    assert main(words) == 0
    found = re.search(r"^weights, kinds +(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert found is not None
    sizes = [int(part.split()[1]) for part in found[1].split(", ")]
    assert re.sub(r" \d+ kB", "", found[1]) == "full, int8, int4"
    assert sizes == sorted(sizes, reverse=True)


# What can't be


def test_an_unknown_kind_is_told(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "weights: there are no weights of the kind 'int6'; expected one of full, int8, int4 (did you mean 'int8'?)"
    with pytest.raises(InputError) as caught:
        cuecard.target(tiny_model, weights="int6")
    assert str(caught.value).startswith(told.partition(" (")[0])
    with pytest.raises(InputError, match=r"expected one of full, int8, int4$"):
        check_weights("")
    assert main(["models", "info", str(tiny_model), "--weights", "int6"]) == 2
    assert "there are no weights of the kind 'int6'" in capsys.readouterr().err


@pytest.mark.parametrize("weights", BOTH)
def test_experts_in_one_tensor_are_refused(weights: str) -> None:
    model = random_model("mixtral")
    before = list(model.state_dict())
    with pytest.raises(InputError) as caught:
        quantize(model, weights, name="mine")
    assert re.fullmatch(
        rf"weights: model 'mine' \(mixtral\) can't have {weights} weights: \d+% of its layers' weights are plain matrices "
        r"of sizes that can be rounded; expected more than half, as in Llama, Qwen, Gemma, GPT-2 or T5\n"
        r"  Leave the weights as they are \(full\), or use another model: experts in one tensor are not rounded\.",
        str(caught.value),
    )
    assert list(model.state_dict()) == before


def test_sizes_that_4_bits_do_not_fit_are_refused() -> None:
    from transformers import AutoModelForCausalLM

    from .helpers import config

    model = AutoModelForCausalLM.from_config(config("llama", hidden_size=40, intermediate_size=40))
    with pytest.raises(InputError, match="can't have int4 weights: none of its layers' weights are plain matrices"):
        quantize(model, "int4", name="odd")
    assert weights_of(quantize(model, "int8", name="odd")) == "int8"


def test_models_info_says_which_kind_a_model_can_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find(build_kind(tmp_path / "t5", "t5"))
    monkeypatch.setattr(Int4Linear, "fits", staticmethod(lambda outputs, inputs: False))
    found = weights_by_kind(source, model_facts(source, device="cpu", dtype="float32"))
    assert found["int4"] is None
    assert found["full"] is not None and found["int8"] is not None
    assert found["full"] > found["int8"]


def test_a_server_has_its_own_weights() -> None:
    with pytest.raises(InputError, match="found the weights 'int8' for a model server"):
        cuecard.target("http://localhost:9", weights="int8")
