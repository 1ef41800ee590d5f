"""Opening a model server as a target: what kind of server it is, what it serves, and with which tokenizer.

The dialect is told by who owns the model's card in `/v1/models` (`vllm`, `sglang`, `llamacpp`), then by endpoints that
only one kind of server has. The user may name it instead.
"""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import httpx

from ...errors import InputError, nearest
from ..engine import Description
from .client import Client, Key, Retry, base_url
from .dialect import Dialect, Options, Served
from .engine import ServerEngine
from .llamacpp import LlamaCpp
from .ollama import Ollama
from .openai import OpenAI
from .sglang import SGLang
from .tokenizer import Endpoints, ModelTokenizer, ServerTokenizer, compare, open_tokenizer
from .vllm import VLLM

if TYPE_CHECKING:
    from ..target import Target

DIALECTS: Mapping[str, type[Dialect]] = MappingProxyType(
    {"vllm": VLLM, "sglang": SGLang, "llamacpp": LlamaCpp, "ollama": Ollama, "openai": OpenAI}
)
ENDPOINTS: Mapping[str, Endpoints] = MappingProxyType({"vllm": "vllm", "sglang": "sglang", "llamacpp": "llamacpp"})
GRAMMARS = ("auto", "llguidance", "gbnf", "schema", "none")
DEFAULT_KEY = "OPENAI_API_KEY"


def server_target(
    url: str,
    model: str | None = None,
    *,
    dialect: str = "auto",
    tokenizer: str | PathLike[str] | None = None,
    api_key_env: str | None = None,
    concurrency: int = 16,
    timeout: float = 600.0,
    tries: int = 5,
    context_window: int | None = None,
    grammars: str = "auto",
    unseeded: bool = False,
    seed: int = 0,
    sleep: Callable[[float], None] = time.sleep,
    transport: httpx.BaseTransport | None = None,
) -> Target:
    """Open the model that a server at `url` (`http://localhost:8000`) serves.

    model: which, where it serves several; dialect: `auto` or a key of `DIALECTS`; tokenizer: a folder or hub id of the
    model's tokenizer, which the server is asked for otherwise; api_key_env: the NAME of the environment variable that
    holds the key (default: OPENAI_API_KEY where it is set, but never over plain HTTP to another machine); concurrency:
    HTTP requests at once; timeout: seconds for one answer; tries: of a request that fails in a way that may pass;
    context_window: tokens, where the server does not say, or fewer than it says; grammars: `auto`, `llguidance`,
    `gbnf`, `schema` or `none`; unseeded: let a server sample that can't seed its sampling; seed: of the jitter between
    tries.

    Raises `InputError` for an option, a model or a tokenizer that is not there, and `RunError` when no server answers.
    """
    from ..target import Target

    _check_options(dialect, grammars, concurrency, tries, timeout)
    client = Client(
        url,
        key=api_key(api_key_env, url, os.environ),
        timeout=timeout,
        retry=Retry(tries=tries),
        seed=seed,
        connections=concurrency,
        sleep=sleep,
        transport=transport,
    )
    found, cards = (dialect, _cards(client)) if dialect != "auto" else detect(client)
    kind = DIALECTS[found]
    served = kind.describe(client, cards, model)
    words = _tokenizer(client, found, served, tokenizer)
    window = _window(served, context_window, client.url)
    served = replace(served, context_window=window)
    engine = ServerEngine(
        kind(client, served, Options(grammars, unseeded)), words, context_window=window, concurrency=concurrency
    )
    return Target(engine, describe(engine, client, served, found))


def describe(engine: ServerEngine, client: Client, served: Served, dialect: str) -> Description:
    """What the target is, for `run.json` and the command line."""
    facts = {"server": client.url, "dialect": dialect, "version": served.version, "root": served.root}
    return Description(
        name=engine.name,
        identity=engine.identity,
        device="server",
        dtype=served.dtype or "unknown",
        parameters=served.parameters,
        context_window=engine.context_window,
        extra={name: value for name, value in facts.items() if value},
    )


def detect(client: Client) -> tuple[str, list[dict[str, Any]]]:
    """The dialect of the server, and its models' cards. Raises `InputError` when it speaks none."""
    cards = _cards(client)
    owners = {str(card.get("owned_by", "")).lower() for card in cards}
    for owner, dialect in (("vllm", "vllm"), ("sglang", "sglang"), ("llamacpp", "llamacpp")):
        if owner in owners:
            return dialect, cards
    marks = (
        ("llamacpp", "/props", "default_generation_settings"),
        ("ollama", "/api/version", "version"),
        ("sglang", "/model_info", "model_path"),
        ("sglang", "/get_model_info", "model_path"),
        ("vllm", "/version", "version"),
    )
    for dialect, path, field in marks:
        answer = client.get(path)
        if isinstance(answer, dict) and field in answer:
            return dialect, cards
    if cards:
        return "openai", cards
    raise InputError(
        f"the server at {client.url} is no model server that is known here",
        expected="vLLM, SGLang, llama.cpp's server, Ollama, or one with OpenAI's /v1/models",
        hint="Give the address without a path; a server with no /v1/models needs `dialect` and `model`.",
    )


def api_key(variable: str | None, url: str, environment: Mapping[str, str]) -> Key | None:
    """The key in `variable`, else the default one where it may be sent; `InputError` when `variable` is unset."""
    if variable is not None:
        if not environment.get(variable):
            raise InputError(
                f"the environment variable {variable} is not set",
                field="api_key_env",
                hint=f"Set it to the server's API key: export {variable}=...",
            )
        return Key(variable, environment[variable])
    if environment.get(DEFAULT_KEY) and _private(url):
        return Key(DEFAULT_KEY, environment[DEFAULT_KEY])
    return None


def _private(url: str) -> bool:
    """Whether nobody on the way can read what is sent to `url`: HTTPS, or this machine."""
    parsed = httpx.URL(base_url(url))
    if parsed.scheme == "https" or parsed.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(parsed.host).is_loopback
    except ValueError:
        return False


def _cards(client: Client) -> list[dict[str, Any]]:
    answer = client.get("/v1/models")
    data = answer.get("data") if isinstance(answer, dict) else None
    return [card for card in data if isinstance(card, dict) and "id" in card] if isinstance(data, list) else []


def _tokenizer(client: Client, dialect: str, served: Served, reference: str | PathLike[str] | None) -> ModelTokenizer:
    endpoints = ENDPOINTS.get(dialect)
    if reference is not None:
        local = open_tokenizer(reference)
        if endpoints is not None:
            compare(local, client, endpoints, served.model)
        return local
    if endpoints is None:
        raise InputError(
            f"the server at {client.url} does not say how {served.model!r} reads text",
            expected="`tokenizer`: a folder or hub id of this very model's tokenizer",
        )
    return ServerTokenizer(client, endpoints, served.model)


def _window(served: Served, asked: int | None, url: str) -> int:
    stated = served.context_window
    if asked is not None and (asked < 2 or (stated is not None and asked > stated)):
        most = f"at most {stated}" if stated is not None else "a number of tokens"
        raise InputError(f"the context window can't be {asked}", field="context_window", expected=f"2 or more, {most}")
    window = asked or stated
    if window is None:
        raise InputError(
            f"the server at {url} does not say how many tokens {served.model!r} takes",
            expected="`context_window`: the most tokens, prompt and output together",
        )
    return window


def _check_options(dialect: str, grammars: str, concurrency: int, tries: int, timeout: float) -> None:
    _one_of("dialect", dialect, ("auto", *DIALECTS))
    _one_of("grammars", grammars, GRAMMARS)
    if concurrency < 1 or tries < 1 or timeout <= 0:
        raise InputError(
            f"concurrency {concurrency}, tries {tries} and timeout {timeout:g} can't be",
            expected="at least 1, at least 1, and more than 0 seconds",
        )


def _one_of(field: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise InputError(
            f"{value!r} is none", field=field, expected=f"one of {', '.join(valid)}", nearest=nearest(value, valid)
        )
