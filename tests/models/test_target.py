"""Opening a target: which engine a model gets, what is said of it, and which models are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_kinds import build_kind

import cuecard
from cuecard.errors import InputError
from cuecard.models.encoder_decoder import EncoderDecoderEngine
from cuecard.models.engine import Decoding, Description, GenerateRequest, Generation, ScoreRequest, Scores
from cuecard.models.local import LocalEngine
from cuecard.models.plain import PlainEngine, why_not_shared
from cuecard.models.target import Target, target_of

from .helpers import ScriptedEngine

Open = Callable[[str], Target]

pytestmark = pytest.mark.usefixtures("cuecard_home")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of a kind, made when it is first asked for."""
    home = tmp_path_factory.mktemp("kinds")

    def find(kind: str) -> Path:
        return home / kind if (home / kind).exists() else build_kind(home / kind, kind)

    return find


@pytest.fixture
def opened(folder_of: Callable[[str], Path]) -> Open:
    return lambda kind: cuecard.target(folder_of(kind), device="cpu", dtype="float32")


def notice(kind: str, why: str) -> dict[str, str]:
    return {"notice": f"{kind} shares no prefixes: {why}; every prompt is computed in full"}


KINDS = [
    ("t5", EncoderDecoderEngine, "it is an encoder-decoder"),
    ("bart", EncoderDecoderEngine, "it is an encoder-decoder"),
    ("bloom", PlainEngine, "it states no context window in its config"),
    ("mamba", PlainEngine, "it states no context window in its config"),
    ("gemma2", PlainEngine, "tree attention does not know softcap"),
]


@pytest.mark.parametrize(("kind", "engine", "why"), KINDS, ids=[kind for kind, _, _ in KINDS])
def test_a_model_that_shares_no_prefixes_answers_and_says_so(kind: str, engine: type, why: str, opened: Open) -> None:
    found = opened(kind)
    assert type(found.engine) is engine
    assert found.description.extra == notice(kind, why)
    tokenizer = found.engine.tokenizer
    prompt = tokenizer.start() + tokenizer.encode("Question: what is the capital of France? Answer:")
    (text,) = found.engine.generate([GenerateRequest(prompt, Decoding(max_tokens=5))])
    (scores,) = found.engine.score([ScoreRequest(prompt, tuple(map(tokenizer.encode, (" Paris.", " billing"))))])
    assert isinstance(text, Generation)
    assert 0 < len(text.samples[0].tokens) <= 5
    assert isinstance(scores, Scores)
    assert all(total < 0 for total in scores.totals)


@pytest.mark.parametrize("kind", ["t5", "bart", "bloom", "mamba"])
def test_the_description_is_of_the_open_model(kind: str, opened: Open) -> None:
    found = opened(kind)
    engine, about = found.engine, found.description
    assert (about.name, about.device, about.dtype) == (kind, "cpu", "float32")
    assert (about.identity, about.context_window) == (engine.identity, engine.context_window)
    assert about.parameters == sum(weight.numel() for weight in engine.model.parameters())
    assert found.lm.model == f"cuecard/{about.identity}"
    assert target_of(engine).description == about


def test_a_model_that_shares_prefixes_has_no_notice(tiny_model: Path) -> None:
    found = cuecard.target(tiny_model, device="cpu", dtype="float32")
    assert isinstance(found.engine, LocalEngine)
    assert found.description.extra == {}


def test_an_engine_without_a_model_is_described_by_what_it_says() -> None:
    assert target_of(ScriptedEngine()).description == Description(
        "scripted", "scripted", "unknown", "unknown", 0, 10_000
    )


def test_the_engine_is_part_of_the_identity(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    before = opened("bloom").description.identity
    assert opened("bloom").description.identity == before
    monkeypatch.setattr("cuecard.models.target.PLAIN_VERSION", "another")
    assert opened("bloom").description.identity != before


def test_a_model_that_sees_what_follows_is_refused(tmp_path: Path) -> None:
    folder = build_kind(tmp_path / "bert", "bert")
    with pytest.raises(InputError) as refused:
        cuecard.target(folder, device="cpu", dtype="float32")
    assert refused.value.message == (
        "model 'bert' (bert) can't be run in batches: its tokens depend on those after them, or on the texts beside them"
    )


def test_the_encoder_of_a_classifier_is_refused(tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    folder = build_kind(tmp_path / "bert", "bert")
    classifier = BertForSequenceClassification.from_pretrained(folder)
    classifier.save_pretrained(folder)
    with pytest.raises(InputError, match=r"\d+ weights of the model are missing: cls\.predictions\."):
        cuecard.target(folder, device="cpu")


def test_the_same_seed_and_prompt_give_the_same_text_again(opened: Open) -> None:
    texts = []
    for _ in range(2):
        engine = opened("t5").engine
        prompt = engine.tokenizer.encode("Please change the address")
        (result,) = engine.generate([GenerateRequest(prompt, Decoding(max_tokens=8, temperature=1.0, seed=3, n=4))])
        assert isinstance(result, Generation)
        texts.append([sample.tokens for sample in result.samples])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


def test_an_encoder_decoder_depends_on_its_prompt(opened: Open) -> None:
    engine = opened("bart").engine
    prompts = [engine.tokenizer.encode(text) for text in ("A customer was charged twice", "The application stops")]
    first, second = engine.score([ScoreRequest(prompt, ((5, 6, 7),)) for prompt in prompts])
    assert isinstance(first, Scores)
    assert isinstance(second, Scores)
    assert not torch.allclose(torch.tensor(first.totals), torch.tensor(second.totals), atol=1e-3)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("model 'a b' (bloom) states no context window in its config", "it states no context window in its config"),
        ("model 'a b' (falcon) can't share prefixes: two lines\nof reasons", "two lines"),
        ("model 'a b' has layers of the kinds ['conv']", "it has layers of the kinds ['conv']"),
        ("something else", "something else"),
    ],
)
def test_a_refusal_is_told_in_one_line_without_the_name(message: str, why: str) -> None:
    assert why_not_shared(InputError(message, expected="another"), "a b") == why


def test_the_name_of_a_model_is_taken_as_it_is() -> None:
    name = "we(ird.*"
    assert re.match("it states", why_not_shared(InputError(f"model {name!r} (x) states none"), name))
