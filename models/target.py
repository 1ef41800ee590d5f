"""The target: the model, its engine and its device that a program is compiled for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import dspy

from ..errors import InputError
from .address import is_address
from .batches import ENGINE_VERSION as PLAIN_VERSION
from .engine import Description, Engine
from .identity import identity
from .lm import language_model
from .loading import LoadedModel, find, load
from .local import ENGINE_VERSION, LocalEngine
from .plain import engine_for, why_not_shared
from .quantized import FULL, dtype_text, identity_part, parameters_of, weights_of
from .tokenizer import HFTokenizer

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Target:
    """A model held ready. `engine` takes token ids; `lm` is the same model as a `dspy.LM`; `description` says what it
    is.
    """

    engine: Engine
    description: Description

    @cached_property
    def lm(self) -> dspy.LM:
        """The `dspy.LM` over the engine: `dspy.configure(lm=target.lm)`."""
        return language_model(self.engine)

    def __deepcopy__(self, memo: object) -> Target:
        return self


def target(
    reference: str | PathLike[str] = DEFAULT_MODEL,
    *,
    device: str = "auto",
    dtype: str = "auto",
    weights: str = FULL,
    cache: str | PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Target:
    """Open a target: find the model, load it, and hash what it is.

    reference: a name (`smollm2-135m`), a folder of safetensors, a `.gguf` file, a hub id, or the address of a model
    server (`http://localhost:8000`; `server_target` takes more about one); device: `auto`, `cpu`, `cuda`, `mps`; dtype:
    `auto`, `bfloat16`, `float16`, `float32`; weights: `full`, or `int8` or `int4`, to which the layers' matrices are
    rounded (see `docs/models.md`). Raises `InputError` for a model or device that is not there.

    >>> import dspy, cuecard
    >>> dspy.configure(lm=cuecard.target("smollm2-135m").lm)
    """
    if is_address(reference):
        from .server import server_target

        check_server_options(device, dtype, None if weights == FULL else weights)
        return server_target(str(reference))
    source = find(reference, cache=cache, progress=progress)
    loaded = load(source, device=device, dtype=dtype, weights=weights)
    return from_loaded(loaded, cache=Path(cache) if cache is not None else None)


def check_server_options(device: str | None, dtype: str | None, weights: str | None = None) -> None:
    """Raise `InputError` for what a model held in process is told, and a server has decided itself."""
    for name, given in (("device", device), ("dtype", dtype), ("weights", weights)):
        if given not in (None, "auto") and (name, given) != ("weights", FULL):
            raise InputError(f"found the {name} {given!r} for a model server", hint=f"The server has its own {name}.")


def from_loaded(loaded: LoadedModel, *, cache: Path | None = None) -> Target:
    """The target over a model that is loaded already.

    A model whose prompts can't share prefixes gets an engine of padded batches, which `description.extra["notice"]`
    says.
    """
    name = loaded.source.name
    tokenizer = HFTokenizer(loaded.tokenizer, name=name)
    parts: dict[str, Any] = {"name": name, "ends": loaded.ends, "backend_tokenizer": loaded.tokenizer}

    def hashed(version: str) -> str:
        return identity(
            loaded.source.folder,
            dtype=loaded.dtype,
            device_kind=loaded.device_kind,
            engine_version=version,
            weights=identity_part(loaded.weights),
            cache=cache,
        )

    engine: Engine
    try:
        engine = LocalEngine(loaded.model, tokenizer, identity=hashed(ENGINE_VERSION), **parts)
    except InputError as refused:
        why = why_not_shared(refused, name)
        engine = engine_for(loaded.model, tokenizer, identity=hashed(PLAIN_VERSION), why=why, **parts)
    description = Description(
        name=name,
        identity=engine.identity,
        device=loaded.device,
        dtype=dtype_text(loaded.dtype, loaded.weights),
        parameters=loaded.parameters,
        context_window=engine.context_window,
        extra=_notice(engine),
    )
    return Target(engine, description)


def target_of(engine: Engine) -> Target:
    """The target over an engine that is open already."""
    model = getattr(engine, "model", None)
    dtype = str(getattr(model, "dtype", "unknown")).removeprefix("torch.")
    description = Description(
        name=engine.name,
        identity=engine.identity,
        device=str(getattr(model, "device", "unknown")),
        dtype=dtype_text(dtype, weights_of(model)) if model is not None else dtype,
        parameters=parameters_of(model) if model is not None else 0,
        context_window=engine.context_window,
        extra=_notice(engine),
    )
    return Target(engine, description)


def _notice(engine: Engine) -> dict[str, str]:
    """What the engine says that it does not do."""
    notice = getattr(engine, "notice", None)
    return {"notice": notice} if notice else {}
