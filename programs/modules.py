"""The strategies that a node can name: `predict`, `chain_of_thought`, and what other packages add.

A strategy is a `ModuleKind`. A package adds one through the entry-point group `cuecard.modules`, as a `ModuleKind` or
as a plain function `(signature, state) -> dspy.Module`; the entry point's name is what a spec writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

import dspy

from ..errors import InputError, nearest
from .predictor import Predictor
from .state import PredictorState

GROUP = "cuecard.modules"
REASONING = "reasoning"

Signature = type[dspy.Signature]


def unchanged(signature: Signature) -> Signature:
    """The signature itself."""
    return signature


@dataclass(frozen=True)
class ModuleKind:
    """A strategy for carrying out a signature.

    `build` makes the module, with `state` for its predictor (for each, where it has several). `extend` gives the
    signature that the module's own predictor has, where the strategy adds fields to the user's; it raises `InputError`
    when it cannot.
    """

    build: Callable[[Signature, PredictorState], dspy.Module]
    extend: Callable[[Signature], Signature] = unchanged


class ChainOfThought(dspy.Module):
    """Writes `reasoning` before the outputs (Wei et al. 2022, arXiv 2201.11903)."""

    def __init__(self, signature: Signature, state: PredictorState | None = None) -> None:
        super().__init__()
        self.predict = Predictor(with_reasoning(signature), state)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """The outputs, `reasoning` first."""
        return self.predict(**inputs)


def with_reasoning(signature: Signature) -> Signature:
    """The signature with an output `reasoning: str` before the others."""
    if REASONING in signature.fields:
        raise InputError(
            f"the signature already has a field {REASONING!r}, which chain_of_thought adds",
            hint="Rename the field, or use module: predict.",
        )
    field = dspy.OutputField(desc="step by step, what leads to the answer")
    extended: Signature = signature.prepend(REASONING, field, type_=str)
    return extended


BUILT_IN: Mapping[str, ModuleKind] = MappingProxyType(
    {
        "predict": ModuleKind(Predictor),
        "chain_of_thought": ModuleKind(ChainOfThought, with_reasoning),
    }
)


def names() -> tuple[str, ...]:
    """The names of all strategies: those that come with Cuecard, then those that other packages add, sorted."""
    return (*BUILT_IN, *sorted(set(_added()) - set(BUILT_IN)))


def module_named(name: str) -> ModuleKind:
    """The strategy of this name. Raises `InputError` when there is none, or an added one cannot be imported."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if name not in (added := _added()):
        near = nearest(name, names())
        expected = None if near else f"one of {', '.join(names())}"
        raise InputError(f"unknown module {name!r}", expected=expected, nearest=near)
    try:
        found = added[name].load()
    except Exception as error:
        raise InputError(f"the module {name!r} cannot be imported from {added[name].value!r}: {error}") from error
    return found if isinstance(found, ModuleKind) else ModuleKind(found)


def _added() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
