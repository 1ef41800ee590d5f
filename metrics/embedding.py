"""Similarity of meaning: the cosine of two texts' embeddings, by the package sentence-transformers, which is an extra.

The model is read from this computer alone: a spec does not make it fetch anything. Nor does it run code that stands in
the model's folder, which releases of the package before 6.0 did for any local folder. Negative cosines count as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

from packaging.version import Version

from ..errors import InputError
from .base import Measurement, TextMetric

_OLDEST = Version("6.0")
_INSTALL = 'Install the extra that has it: pip install "cuecard[embeddings]"'


@dataclass(frozen=True, kw_only=True)
class Similarity(TextMetric):
    """The cosine of the embeddings of the text and of the nearest reference, 0..1.

    `model` is a sentence-transformers model: a folder, or a name that was fetched before. An empty text is like another
    empty text and like nothing else.
    """

    name = "similarity"
    fields: tuple[str, ...] = ()
    model: str = "sentence-transformers/all-MiniLM-L6-v2"

    @cached_property
    def _encoder(self) -> Any:
        package = self._package()
        try:
            return package.SentenceTransformer(self.model, device="cpu", local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"metric {self.name!r} cannot open the model {self.model!r}: {error}",
                expected="a folder with a sentence-transformers model, or the name of one that was fetched before",
            ) from error

    def _package(self) -> Any:
        try:
            package = import_module("sentence_transformers")
        except ImportError as error:
            raise InputError(
                f"metric {self.name!r} needs the package sentence-transformers, which cannot be imported: {error}",
                hint=_INSTALL,
            ) from None
        if Version(package.__version__) < _OLDEST:
            raise InputError(
                f"metric {self.name!r} found sentence-transformers {package.__version__}",
                expected=f"{_OLDEST} or newer, which runs no code from a model's folder",
                hint=_INSTALL,
            )
        return package

    def compare_text(self, gold: Sequence[str], prediction: str) -> Measurement:
        """See `TextMetric.compare_text`."""
        encoder = self._encoder
        references = [text for text in gold if text.strip()]
        if not references or not prediction.strip():
            return Measurement(float(not prediction.strip() and len(references) < len(gold)))
        ours, *theirs = encoder.encode([prediction, *references], normalize_embeddings=True, show_progress_bar=False)
        cosine = max(float(sum(float(x) * float(y) for x, y in zip(ours, one, strict=True))) for one in theirs)
        return Measurement(min(max(cosine, 0.0), 1.0))

    def __getstate__(self) -> dict[str, Any]:
        # A copy opens the model again when it is first used: weights are not copied along.
        return {key: value for key, value in self.__dict__.items() if key != "_encoder"}
