"""Finding out by trying what a model can do in a batch.

Transformers' models differ in that, and no configuration says all of it: recurrent ones may not know padding, caches
may not let rows go. So a model is tried once, on two short texts, against a plain forward pass of each: can they stand
in one batch though their lengths differ, and can the batch's rows be picked? Where not, only prompts of equal length
share a batch (or each has its own, as for transformers' RWKV, which is wrong for several), or finished rows stay until
the last is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, RunError
from .batch_limits import out_of_memory
from .batch_rows import Batch, Tokens
from .compute import in_compute

TRIAL = (3, 7, 7)  # tokens of the prompts that a model is tried on,
TRIAL_STEPS = 2  # and of what comes after each
# How far the logits of a trial may be from a plain forward pass's in 32 and in 16 bits, see `_difference`.
FINE, COARSE = 0.01, 0.2

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Abilities:
    """What a model can do in a batch. pads: texts of different lengths are right in it; joins: texts of equal length
    are; selects: its rows can be picked.
    """

    pads: bool = False
    joins: bool = False
    selects: bool = False


@dataclass(frozen=True)
class Trial(Generic[Opened]):
    """A model on trial. The functions are those of its engine, see `batches.BatchEngine`."""

    model: Any
    name: str
    vocabulary: int
    open: Callable[[Sequence[Tokens]], Opened]
    begin: Callable[[Opened, Sequence[int]], Batch]
    predict: Callable[[Opened, Sequence[int], Sequence[Tokens]], Iterator[Tensor]]
    alone: Callable[[Tokens, Tokens], Tensor]

    @in_compute
    @torch.inference_mode()
    def run(self) -> Abilities:
        """Find out what the model can do. Raises `InputError` for one that can't be run, and `RunError` when memory
        runs out.
        """
        numbers = np.random.Generator(np.random.Philox(key=0)).integers(0, self.vocabulary, (3, max(TRIAL) + 2))
        texts = [
            (tuple(row[:length].tolist()), tuple(row[-TRIAL_STEPS:].tolist()))
            for row, length in zip(numbers, TRIAL, strict=True)
        ]
        try:
            alone = [self.alone(prompt, path).float() for prompt, path in texts]
            opened = self.open([prompt for prompt, _ in texts])
            read = list(self.predict(opened, range(len(texts)), [path for _, path in texts]))
        except Exception as cause:  # models refuse what they do not know in many ways, and each means the same
            raise self._unfit(cause) from cause
        if any(not self._close(ours, theirs) for ours, theirs in zip(read, alone, strict=True)):
            raise self._unfit("its tokens depend on those after them, or on the texts beside them")
        trouble: Exception | str | None = None
        for kinds in (slice(0, 2), slice(1, 3), slice(1, 2)):  # of different lengths, of equal length, one alone
            trouble = self._trouble(texts[kinds], alone[kinds])
            if trouble is None:
                break
        else:
            raise self._unfit(trouble) from (trouble if isinstance(trouble, Exception) else None)
        joins = kinds.stop - kinds.start > 1
        selects = joins and self._trouble(texts[kinds], alone[kinds], pick=True) is None
        return Abilities(pads=kinds.start == 0, joins=joins, selects=selects)

    def _trouble(
        self, texts: Sequence[tuple[Tokens, Tokens]], alone: Sequence[Tensor], *, pick: bool = False
    ) -> Exception | str | None:
        """What goes wrong when these texts take their steps in one batch, and its rows are picked meanwhile."""
        rows = list(range(len(texts)))
        got: dict[int, list[Tensor]] = {row: [] for row in rows}
        try:
            batch = self.begin(self.open([prompt for prompt, _ in texts]), rows)
            for step in range(TRIAL_STEPS + 1):
                for text, logits in zip(rows, batch.logits, strict=True):
                    got[text] = [*got[text][:step], logits]
                if pick and step < TRIAL_STEPS:
                    rows = ([1, 0, 1], [0, 1])[step]
                    batch.keep(([1, 0, 1], [1, 2])[step])
                if step < TRIAL_STEPS:
                    batch.step([texts[text][1][step] for text in rows])
        except Exception as cause:  # as above; a cause that matters is told by the caller
            if out_of_memory(cause):
                raise self._unfit(cause) from cause
            return cause
        if all(self._close(torch.stack(got[text]), alone[text]) for text in got):
            return None
        return "its cache does not give what a forward pass over the whole text gives"

    def _close(self, ours: Tensor, theirs: Tensor) -> bool:
        tolerance = COARSE if self.model.dtype.itemsize < 4 else FINE
        return ours.shape == theirs.shape and _difference(ours.float(), theirs.float()) <= tolerance  # False for NaN

    def _unfit(self, cause: Exception | str | None) -> InputError | RunError:
        if isinstance(cause, Exception) and out_of_memory(cause):
            return RunError(f"there is not enough memory to run model {self.name!r}: {cause}")
        kind, told = self.model.config.model_type, str(cause).partition("\n")[0] or type(cause).__name__
        return InputError(f"model {self.name!r} ({kind}) can't be run in batches: {told}", hint="Choose another model.")


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """How far logits [T, V] are apart, relative to the spread of each token's logits: the median over the tokens,
    because a rounding error can send a token of a mixture of experts to another expert.
    """
    spread = (theirs - theirs.mean(dim=-1, keepdim=True)).norm(dim=-1)
    return float(((ours - theirs).norm(dim=-1) / spread).median())
