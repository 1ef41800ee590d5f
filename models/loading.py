"""Finding a model by what the user calls it, and loading it onto a device.

A reference is a name of the catalogue, a folder of safetensors, a GGUF file, or a hub id `org/name`. Weights that are
pickles are never read, since unpickling runs code, and no code that comes with a model is run.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError, RunError, nearest
from .catalogue import CATALOGUE, cache_home
from .compute import compute
from .convert import convert, quiet
from .devices import choose_device, choose_dtype
from .identity import file_sha256
from .pull import Progress, build, pulled, seal, sealed

Kind = Literal["catalogue", "folder", "gguf", "hub"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model"]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are. name: for people; kind: what `reference`, the user's own words, turned out to be."""

    name: str
    folder: Path
    kind: Kind
    reference: str


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for inference.

    model, tokenizer, config: transformers' objects; device: `cpu`, `cuda:0`, `mps`, ...; dtype: `bfloat16`, ...;
    weights: `full`, or what they are rounded to (`quantized.KINDS`).
    """

    model: Any
    tokenizer: Any
    config: Any
    device: str
    dtype: str
    source: ModelSource
    weights: str = "full"

    @property
    def device_kind(self) -> str:
        """`cpu`, `cuda` or `mps`."""
        return self.device.partition(":")[0]

    @property
    def parameters(self) -> int:
        """How many weights the model has; shared ones count once."""
        from .quantized import parameters_of

        return parameters_of(self.model)

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids of the tokens that end a text or a turn, in ascending order."""
        settings = (self.model.generation_config, self.config.get_text_config(), self.tokenizer)
        found: set[int] = set()
        for value in (getattr(setting, "eos_token_id", None) for setting in settings):
            found.update([value] if isinstance(value, int) else value or [])
        return tuple(sorted(found))


def find(
    reference: str | PathLike[str], *, cache: str | PathLike[str] | None = None, progress: Progress | None = None
) -> ModelSource:
    """The model that `reference` means, with its files on this machine.

    A catalogue's model must have been pulled; a GGUF file is converted once per content, under `cache`; a hub id is
    downloaded by transformers' own client into its own cache. Raises `InputError` when there is no such model or it
    cannot be used here, and `RunError` when a download fails.
    """
    say = progress or (lambda line: None)
    text = str(reference)
    if isinstance(reference, str) and text in CATALOGUE:
        folder = pulled(text, cache)
        if folder is None:
            raise InputError(f"the model {text!r} is not on this machine", hint=f"run: cuecard models pull {text}")
        return ModelSource(text, folder, "catalogue", text)
    path = Path(text).expanduser()
    if text and path.is_dir():
        return ModelSource(path.resolve().name, _check_folder(path.resolve()), "folder", text)
    if path.is_file():
        return ModelSource(path.stem, _from_gguf(path.resolve(), cache, say), "gguf", text)
    if isinstance(reference, str) and _HUB_ID.fullmatch(text) and path.suffix != ".gguf":
        return ModelSource(text, _check_folder(_from_hub(text, say), shown=text), "hub", text)
    if isinstance(reference, str) and not re.search(r"[/\\]|\.gguf$|^[.~]", text):
        raise InputError(
            f"no model is called {text!r}",
            expected=f"{', '.join(sorted(CATALOGUE))}, a folder, a .gguf file, or a hub id like org/name",
            nearest=nearest(text, CATALOGUE),
        )
    raise InputError("there is no such file or folder", path=text, expected="a folder of safetensors or a .gguf file")


def load(source: ModelSource, *, device: str = "auto", dtype: str = "auto", weights: str = "full") -> LoadedModel:
    """The model of `source` in memory, in evaluation mode, without gradients.

    device: `auto` (CUDA, then MPS, then CPU), `cpu`, `cuda`, `cuda:1`, `mps`; dtype: `auto` (bfloat16 where the device
    computes in it, else float32 on a CPU and float16 elsewhere), `bfloat16`, `float16`, `float32`; weights: `full`,
    `int8`, `int4` (see `quantized`). Raises `InputError` for a device that is not there, for files that are damaged or
    no language model and for weights that can't be rounded, `RunError` when memory runs out.
    """
    from .quantized import FULL, check_weights, quantize

    check_weights(weights)
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    tokenizer = load_tokenizer(source)
    with quiet(), _untied(), _told(source, "the model"):
        model = compute(_weights, source, chosen_device if weights == FULL else "cpu", chosen_dtype)
        if weights != FULL:
            model = compute(quantize, model, weights, name=source.name, device=chosen_device)
    model.requires_grad_(False)
    return LoadedModel(model.eval(), tokenizer, model.config, chosen_device, chosen_dtype, source, weights)


def load_tokenizer(source: ModelSource) -> Any:
    """The transformers tokenizer of `source`. Raises `InputError` when its files cannot be used."""
    from transformers import AutoTokenizer

    with quiet(), _told(source, "the tokenizer"):
        return AutoTokenizer.from_pretrained(str(source.folder), local_files_only=True, trust_remote_code=False)


def load_config(source: ModelSource) -> Any:
    """The transformers configuration of `source`. Raises `InputError` when it cannot be used."""
    from transformers import AutoConfig

    with quiet(), _told(source, "the configuration"):
        return AutoConfig.from_pretrained(str(source.folder), local_files_only=True, trust_remote_code=False)


def load_settings(source: ModelSource) -> Any:
    """The transformers generation config of `source`, which its weights will be loaded with."""
    from transformers import GenerationConfig

    if not (source.folder / "generation_config.json").is_file():
        return GenerationConfig.from_model_config(load_config(source))
    with quiet(), _told(source, "the generation config"):
        return GenerationConfig.from_pretrained(str(source.folder), local_files_only=True)


def load_skeleton(source: ModelSource) -> Any:
    """The transformers model of `source` without its weights, which are not read. Raises `InputError` like `load`."""
    import torch

    with quiet(), _told(source, "the configuration"), torch.device("meta"):
        return _factory(source).from_config(load_config(source))


def _factory(source: ModelSource) -> Any:
    """The transformers class that reads the model. Raises `InputError` for what is no language model."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
    )

    config = load_config(source)
    both = bool(config.is_encoder_decoder)
    if type(config) not in (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if both else MODEL_FOR_CAUSAL_LM_MAPPING):
        raise InputError(
            f"a model of the kind {config.model_type!r} is no language model",
            path=source.folder,
            expected="one that writes text, such as Llama, Qwen, GPT-2 or T5",
        )
    return AutoModelForSeq2SeqLM if both else AutoModelForCausalLM


def _weights(source: ModelSource, device: str, dtype: str) -> Any:
    import torch

    model, report = _factory(source).from_pretrained(
        str(source.folder),
        dtype=getattr(torch, dtype),
        device_map=None if device == "cpu" else {"": device},
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        weights_only=True,
        ignore_mismatched_sizes=True,  # they are refused below, by name
        output_loading_info=True,
    )
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise InputError(
            f"the weight {name} has the shape {list(found)}",
            path=source.folder,
            expected=f"{list(expected)} by config.json",
        )
    if missing := sorted(report["missing_keys"]):  # transformers would go on with random numbers in their place
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(f"{len(missing)} weights of the model are missing: {some}", path=source.folder)
    return model


@contextlib.contextmanager
def _untied() -> Iterator[None]:
    """No word of an output layer that differs from the embedding: it is used as it is, as it must be (FLAN-T5's)."""
    logger = logging.getLogger("transformers.modeling_utils")

    def others(record: logging.LogRecord) -> bool:
        return "so we will NOT tie them" not in record.getMessage()

    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


@contextlib.contextmanager
def _told(source: ModelSource, part: str) -> Iterator[None]:
    """What transformers raises for files that it cannot use, told as the user's error with its cause."""
    import torch

    try:
        yield
    except (InputError, RunError):
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise RunError(
            f"there is not enough memory to load {source.name}: {error}",
            path=source.folder,
            hint="Use a smaller model or another device.",
        ) from error
    except Exception as error:  # the readers below raise many kinds, and each is about the files in this folder
        cause = next((line for line in str(error).splitlines() if line.strip()), "")
        if not cause or isinstance(error, LookupError):
            cause = f"{type(error).__name__}: {cause}"
        hint = "Code that comes with a model is not run." if "trust_remote_code" in str(error) else None
        raise InputError(f"{part} cannot be loaded: {cause}", path=source.folder, hint=hint) from error


def _check_folder(folder: Path, shown: str | None = None) -> Path:
    """`folder` if it looks like a model that can be loaded safely; `shown` is what errors call it."""
    where = shown or folder
    names = {path.name for path in folder.iterdir()}
    if not any(name.endswith(".safetensors") for name in names):
        if any(name.endswith(_PICKLES) for name in names):
            raise InputError(
                "its weights are pickles, which can run code when they are read",
                path=where,
                expected="*.safetensors",
                hint="Use a copy of the model in safetensors, or convert it where you trust its origin.",
            )
        ggufs = sorted(name for name in names if name.endswith(".gguf"))
        hint = f"Name the file itself: {folder / ggufs[0]}" if ggufs else None
        raise InputError("this folder holds no model", path=where, expected="config.json and *.safetensors", hint=hint)
    if "config.json" not in names:
        hint = "This is an adapter; merge it into its base model first." if "adapter_config.json" in names else None
        raise InputError("there is no config.json beside the weights", path=where, hint=hint)
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        raise InputError("there is no tokenizer beside the weights", path=where, expected="tokenizer.json")
    return folder


def _from_gguf(file: Path, cache: str | PathLike[str] | None, say: Progress) -> Path:
    """The folder that the GGUF file was converted to, keyed by its content."""
    with file.open("rb") as start:
        magic = start.read(4)
    if magic != b"GGUF":
        raise InputError("this file is not a model", path=file, expected="a folder of safetensors or a .gguf file")
    content = file_sha256(file, cache)
    folder = cache_home(cache) / "models" / f"gguf-{content[:16]}"

    def fill(work: Path) -> None:
        say(f"converting {file.name} to safetensors")
        convert(file, work)
        seal(work, {"name": file.stem, "gguf_sha256": content})

    build(folder, fill, ready=lambda: sealed(folder, content), progress=say)
    return folder


def _from_hub(hub_id: str, say: Progress) -> Path:
    """The model's snapshot, downloaded or found in the hub client's cache, without pickles."""
    import huggingface_hub

    say(f"looking for {hub_id} on the hub")
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except Exception as error:  # the client's own, its HTTP library's and the system's; all mean: no download
        cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RunError(
            f"{hub_id} could not be downloaded from the hub: {cause}",
            hint="There is also no folder of that name. Check the id and the network, or give the path of a folder.",
        ) from error
