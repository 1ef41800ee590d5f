"""Opening a server: which kind it is, which model, whose tokenizer, how large, and what is wrong with the options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cuecard.errors import CuecardError, InputError
from cuecard.models.engine import Decoding, Engine, GenerateRequest, Turn
from cuecard.models.local import LocalEngine
from cuecard.models.server import DIALECTS, server_target
from cuecard.models.server.client import Client, base_url
from cuecard.models.server.opening import api_key, detect
from cuecard.models.server.tokenizer import LocalTokenizer, ServerTokenizer, open_tokenizer
from cuecard.models.target import Target
from tiny import build_tiny_tokenizer

from ..helpers import engine_over, random_model
from .fake import FakeLlamaCpp, FakeServer, FakeVLLM

TURNS = (Turn("system", "Be brief."), Turn("user", "Classify the ticket."))


@pytest.fixture(scope="module")
def local() -> LocalEngine:
    return engine_over(random_model("llama"))


@pytest.fixture(scope="module")
def vllm(local: LocalEngine) -> Iterator[str]:
    with FakeVLLM(local, context=local.context_window).running() as url:
        yield url


@pytest.fixture(scope="module")
def llamacpp(local: LocalEngine) -> Iterator[str]:
    with FakeLlamaCpp(local, context=local.context_window).running() as url:
        yield url


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def scripted(table: dict[str, Any]) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        found = table.get(request.url.path)
        return httpx.Response(404) if found is None else httpx.Response(200, json=found)

    return httpx.MockTransport(answer)


# Addresses and keys


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://localhost:8000/", "http://localhost:8000"),
        ("http://localhost:8000/v1", "http://localhost:8000"),
        (" https://host/api/v1/ ", "https://host/api"),
        ("https://host/v1?a=b", "https://host"),
    ],
)
def test_an_address_is_what_stands_before_v1(url: str, base: str) -> None:
    assert base_url(url) == base


@pytest.mark.parametrize("url", ["localhost:8000", "host", "ftp://host", "", "http://"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InputError, match="no address"):
        base_url(url)


def test_a_forgotten_scheme_is_offered() -> None:
    with pytest.raises(InputError, match="Write http://localhost:8000"):
        server_target("localhost:8000")


def test_a_password_in_the_address_is_not_shown() -> None:
    assert Client("http://me:secret@host:8000/v1").url == "http://host:8000"


def test_a_key_comes_from_the_variable_that_is_named() -> None:
    key = api_key("MINE", "http://far", {"MINE": "1", "OPENAI_API_KEY": "2"})
    assert key is not None
    assert (key.variable, key.value) == ("MINE", "1")
    assert "'1'" not in repr(key)
    with pytest.raises(InputError, match="export MINE="):
        api_key("MINE", "http://far", {})


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://far", True),
        ("http://localhost:1", True),
        ("http://127.0.0.1:1", True),
        ("http://[::1]:1", True),
        ("http://far:8000", False),
        ("http://10.0.0.5:8000", False),
    ],
)
def test_the_default_key_is_not_sent_where_it_can_be_read(url: str, sent: bool) -> None:
    assert (api_key(None, url, {"OPENAI_API_KEY": "2"}) is not None) == sent
    assert api_key(None, url, {}) is None


# Which server


@pytest.mark.parametrize(
    ("dialect", "table"),
    [
        ("vllm", {"/v1/models": {"data": [{"id": "m", "owned_by": "vllm"}]}}),
        ("sglang", {"/v1/models": {"data": [{"id": "m", "owned_by": "sglang"}]}}),
        ("llamacpp", {"/v1/models": {"data": [{"id": "m", "owned_by": "llamacpp"}]}}),
        ("llamacpp", {"/v1/models": {"data": [{"id": "m"}]}, "/props": {"default_generation_settings": {}}}),
        ("ollama", {"/v1/models": {"data": [{"id": "m", "owned_by": "library"}]}, "/api/version": {"version": "1"}}),
        ("sglang", {"/get_model_info": {"model_path": "m"}}),
        ("vllm", {"/version": {"version": "0.9"}}),
        ("openai", {"/v1/models": {"data": [{"id": "m", "owned_by": "me"}]}}),
    ],
)
def test_a_server_is_known_by_what_it_says(dialect: str, table: dict[str, Any]) -> None:
    assert detect(Client("http://server", transport=scripted(table)))[0] == dialect


def test_something_else_is_no_model_server() -> None:
    with pytest.raises(InputError, match="no model server that is known here"):
        detect(Client("http://server", transport=scripted({"/": {"hello": 1}})))


def test_a_dialect_can_be_named(vllm: str, tokenizer_folder: str) -> None:
    target = server_target(vllm, dialect="openai", tokenizer=tokenizer_folder)
    assert target.description.extra["dialect"] == "openai"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dialect": "vlm"}, "dialect: 'vlm' is none; expected one of auto, vllm, sglang, llamacpp, ollama, openai"),
        ({"dialect": "vlm"}, "did you mean 'vllm'"),
        ({"grammars": "ebnf"}, "expected one of auto, llguidance, gbnf, schema, none"),
        ({"concurrency": 0}, "concurrency 0"),
        ({"tries": 0}, "tries 0"),
        ({"timeout": 0}, "timeout 0"),
        ({"model": "tinny"}, "does not serve 'tinny'; expected one of tiny (did you mean 'tiny'?)"),
        ({"context_window": 1}, "context_window: the context window can't be 1; expected 2 or more, at most"),
        ({"context_window": 10**6}, "can't be 1000000"),
        ({"tokenizer": "/nowhere/at/all"}, "no tokenizer can be read from '/nowhere/at/all'"),
        ({"dialect": "openai"}, "does not say how 'tiny' reads text; expected `tokenizer`"),
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "the environment variable NOT_SET_ANYWHERE is not set"),
    ],
)
def test_options_that_cant_be(vllm: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        server_target(vllm, **options)
    assert says in str(caught.value)


def test_one_of_several_models_must_be_named() -> None:
    cards = [{"id": "a", "owned_by": "vllm"}, {"id": "b", "owned_by": "vllm"}]
    with pytest.raises(InputError, match="serves 2 models, and none is named; expected one of a, b"):
        server_target("http://server", transport=scripted({"/v1/models": {"data": cards}}))


def test_a_server_without_a_list_serves_what_is_named(tokenizer_folder: str) -> None:
    options = {"dialect": "openai", "tokenizer": tokenizer_folder, "context_window": 9, "transport": scripted({})}
    assert server_target("http://server", "mine", **options).engine.name == "mine"
    with pytest.raises(InputError, match="lists no model"):
        server_target("http://server", **options)


def test_an_adapter_is_not_the_model(vllm: str, local: LocalEngine) -> None:
    class WithAdapter(FakeVLLM):
        def models(self) -> tuple[int, Any]:
            return 200, {"data": [self.card(), {**self.card(), "id": "adapter", "parent": "tiny"}]}

    with WithAdapter(local, context=local.context_window).running() as url:
        assert server_target(url).engine.name == "tiny"
        assert server_target(url, "adapter").engine.name == "adapter"
        assert server_target(url).engine.identity != server_target(url, "adapter").engine.identity


def test_a_server_that_does_not_tell_its_window(tokenizer_folder: str) -> None:
    transport = scripted({"/v1/models": {"data": [{"id": "m"}]}})
    with pytest.raises(InputError, match="does not say how many tokens 'm' takes; expected `context_window`"):
        server_target("http://server", tokenizer=tokenizer_folder, transport=transport)
    target = server_target("http://server", tokenizer=tokenizer_folder, transport=transport, context_window=50)
    assert target.engine.context_window == target.description.context_window == 50


def test_a_window_can_be_made_smaller(vllm: str) -> None:
    engine = server_target(vllm, context_window=20).engine
    assert engine.context_window == 20
    (result,) = engine.generate([GenerateRequest((5,) * 18, Decoding(max_tokens=3))])
    assert "need 21 tokens" in result.error  # type: ignore[union-attr]


# What it is


def test_a_target_over_a_server(vllm: str) -> None:
    target = server_target(vllm)
    assert isinstance(target, Target)
    assert isinstance(target.engine, Engine)
    description = target.description
    assert (description.name, description.device, description.dtype) == ("tiny", "server", "unknown")
    assert description.identity == target.engine.identity
    assert description.extra == {"server": vllm, "dialect": "vllm", "version": "0.32.0", "root": "org/tiny"}
    (text,) = target.lm("Hello", max_tokens=4, temperature=0.0)
    assert isinstance(text, str)


def test_identity_is_of_what_is_served_not_of_where(local: LocalEngine, tokenizer_folder: str) -> None:
    def identity(server: FakeServer, **options: Any) -> str:
        with server.running() as url:
            return server_target(url, **options).engine.identity

    window = local.context_window
    first = identity(FakeVLLM(local, context=window))
    assert identity(FakeVLLM(local, context=window)) == first, "another port, another time"
    others = {
        identity(FakeVLLM(local, context=window, model="other")),
        identity(FakeVLLM(local, context=window, version="0.33.0")),
        identity(FakeVLLM(local, context=window - 1)),
        identity(FakeVLLM(local, context=window), tokenizer=tokenizer_folder),
        identity(FakeLlamaCpp(local, context=window)),
        identity(FakeLlamaCpp(local, context=window, vocabulary=511)),
    }
    assert first not in others
    assert len(others) == 6


def test_every_dialect_has_a_name_and_spellings_it_can_write() -> None:
    assert list(DIALECTS) == ["vllm", "sglang", "llamacpp", "ollama", "openai"]
    assert len({kind.name for kind in DIALECTS.values()}) == len(DIALECTS)


# Tokenizers


@pytest.fixture(params=["vllm", "llamacpp"])
def served(request: pytest.FixtureRequest) -> ServerTokenizer:
    url = request.getfixturevalue(request.param)
    return ServerTokenizer(Client(url), request.param, "tiny")


def test_a_servers_tokenizer_is_the_models(served: ServerTokenizer, local: LocalEngine) -> None:
    for text in ("A customer was charged.", "", "naïve 漢字 🙂", "<|im_start|>user\nhi<|im_end|>"):
        ids = local.tokenizer.encode(text)
        assert served.encode(text) == ids == served.encode(text)
        assert served.text(ids) == text
    assert served.start() == local.tokenizer.start()
    assert served.chat(TURNS) == local.tokenizer.chat(TURNS)
    assert served.chat(TURNS, "The ") == local.tokenizer.chat(TURNS) + "The "


def test_llamacpp_leaves_special_tokens_out(llamacpp: str, local: LocalEngine) -> None:
    served = ServerTokenizer(Client(llamacpp), "llamacpp", "tiny")
    ids = local.tokenizer.encode("<|im_start|>user\nhi <there><|im_end|>")
    assert served.decode(ids) == local.tokenizer.decode(ids) == "user\nhi <there>"


def test_a_text_is_asked_for_once(vllm: str) -> None:
    asked = []

    def count(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, json={"tokens": [7]})

    served = ServerTokenizer(Client(vllm, transport=httpx.MockTransport(count)), "vllm", "tiny")
    before = len(asked)
    assert served.encode("a text") == served.encode("a text") == (7,)
    assert len(asked) == before + 1


def test_a_server_without_its_tokenizer_says_what_to_give() -> None:
    cards = {"/v1/models": {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 9}]}}
    with pytest.raises(InputError) as caught:
        server_target("http://server", transport=scripted(cards))
    assert "/tokenize of the server at http://server fails: HTTP 404" in str(caught.value)
    assert "Name a local tokenizer" in str(caught.value)


def test_a_tokenizer_of_another_model_is_found_out(vllm: str, tmp_path: Any) -> None:
    other = build_tiny_tokenizer()
    other.add_tokens(["customer"])
    other.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="the tokenizer given is not that of 'tiny'"):
        server_target(vllm, tokenizer=tmp_path)


def test_a_local_tokenizer_does_what_the_engines_own_does(tokenizer_folder: str, local: LocalEngine) -> None:
    tokenizer = open_tokenizer(tokenizer_folder)
    assert isinstance(tokenizer, LocalTokenizer)
    ids = tokenizer.encode("<|im_start|>hi")
    assert (tokenizer.decode(ids), tokenizer.text(ids)) == ("hi", "<|im_start|>hi")
    assert tokenizer.chat(TURNS) == local.tokenizer.chat(TURNS)
    assert tokenizer.digest() == open_tokenizer(tokenizer_folder).digest()


def test_a_model_without_a_chat_template_can_be_opened() -> None:
    class NoTemplate:
        def __call__(self, request: httpx.Request) -> httpx.Response:
            if request.url.path == "/v1/models":
                return httpx.Response(200, json={"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 99}]})
            if request.url.path == "/tokenize" and b"messages" not in request.content:
                return httpx.Response(200, json={"tokens": [5, 6]})
            return httpx.Response(400, json={"error": {"message": "no chat template"}})

    engine = server_target("http://server", transport=httpx.MockTransport(NoTemplate())).engine
    with pytest.raises(CuecardError, match="no chat template"):
        engine.tokenizer.chat(TURNS)
