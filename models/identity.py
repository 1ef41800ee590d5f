"""What a model is, as one hash: its weights, tokenizer, chat template, configuration, dtype, device kind and engine.

Two targets with one identity give the same outputs for the same requests, so results can be cached, resumed, replayed
and compared by it. Where the model's folder lies, what its files are dated and which transformers version wrote them do
not count. Hashing weights takes seconds, so each file's SHA-256 is remembered in the cache for as long as the file
keeps its path, size and times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from os import PathLike
from pathlib import Path

from ..errors import InputError, RunError
from ..files import write_atomic
from .catalogue import cache_home

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
CONFIGURATION = ("config.json", "generation_config.json")

# Written by transformers about itself and about where a model was loaded from; they do not change what a model does.
_INCIDENTAL = ("transformers_version", "_name_or_path", "_from_model_config", "is_local", "local_files_only")


def identity(
    folder: str | PathLike[str],
    *,
    dtype: str,
    device_kind: str,
    engine_version: str,
    weights: str | None = None,
    cache: str | PathLike[str] | None = None,
) -> str:
    """The content hash of the model in `folder` as a target: 32 hexadecimal digits, the first 16 bytes of a SHA-256.

    dtype: `bfloat16`, ...; device_kind: `cpu`, `cuda` or `mps`, as kernels differ between them; engine_version changes
    whenever an engine's outputs may; weights: what they are rounded to, and by which method (`int8-1`). Raises
    `InputError` when the folder holds no weights.
    """
    root = Path(folder)
    parts = {"dtype": dtype, "device": device_kind, "engine": engine_version}
    if weights is not None:
        parts["weights"] = weights
    for pattern in (*WEIGHTS, *TOKENIZER, *CONFIGURATION):
        for path in sorted(root.glob(pattern)):
            small_json = path.suffix == ".json" and path.name != "tokenizer.json"
            parts[path.relative_to(root).as_posix()] = _content(path) if small_json else file_sha256(path, cache)
    if not any(name.endswith(".safetensors") for name in parts):
        raise InputError("there are no weights", path=root, expected="*.safetensors files")
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def sha256(path: str | PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256(path: str | PathLike[str], cache: str | PathLike[str] | None = None) -> str:
    """`sha256`, remembered under `cache` (default: `catalogue.cache_home()`) while path, size and times stand.

    A cache that cannot be written costs time, never the answer.
    """
    file = Path(path).resolve()
    before = _stamp(file)
    note = cache_home(cache) / "hashes" / f"{hashlib.sha256(str(file).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(note.read_text(encoding="utf-8"))
        if isinstance(known, dict) and known.get("stamp") == before and isinstance(known.get("sha256"), str):
            return str(known["sha256"])
    digest = sha256(file)
    if _stamp(file) == before:  # else it is being written to, and the hash is of no one state of it
        with contextlib.suppress(OSError, RunError):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(note, json.dumps({"path": str(file), "stamp": before, "sha256": digest}))
    return digest


def _stamp(file: Path) -> list[int]:
    """Size, modification time and status-change time, which moves when a file of equal size and date takes over."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _content(path: Path) -> str:
    """The hash of a JSON file's values, whatever its spacing, without what is incidental; else of its bytes."""
    raw = path.read_bytes()
    with contextlib.suppress(ValueError):
        values = json.loads(raw)
        if isinstance(values, dict):
            values = {key: value for key, value in values.items() if key not in _INCIDENTAL}
        raw = json.dumps(values, sort_keys=True).encode()
    return hashlib.sha256(raw).hexdigest()
