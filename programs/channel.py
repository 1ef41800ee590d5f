"""The read-out `channel`: a label is judged by how likely the inputs are among those that have it.

A choice by likelihood asks which label follows the inputs. Its reverse asks which label's inputs these could be: each
label has a prompt of its own, which shows the demos of that label and no others, and is worth the log-likelihood of the
inputs in it (Min et al. 2022, "Noisy Channel Language Model Prompting for Few-Shot Text Classification", ACL;
https://aclanthology.org/2022.acl-long.365). A model that is too small to follow a task still knows which texts are
alike; what a label is called matters little, and none is favoured because its name is a frequent word.

The demos are the same for all inputs, so an engine that shares prefixes computes them once: a call costs its inputs
once for each label, however many demos there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import dspy

from ..errors import InputError
from ..models.engine import ScoreRequest, Tokenizer
from ..signatures import write
from .formats.base import Format, Values
from .prompt import Prompt
from .spans import is_text

OPEN = "\N{OBJECT REPLACEMENT CHARACTER}"  # no text begins or ends like it


def demos_of(signature: type[dspy.Signature], demos: Sequence[Values], field: str, label: str) -> tuple[Values, ...]:
    """The demos whose output `field` is `label`, in order."""
    annotation = signature.output_fields[field].annotation
    return tuple(demo for demo in demos if field in demo and write(demo[field], annotation) == label)


def texts_of(signature: type[dspy.Signature], inputs: Values) -> tuple[str, ...]:
    """The inputs that are texts, of those that have a value. Raises `InputError` where none can be."""
    texts = [name for name, field in signature.input_fields.items() if is_text(field.annotation)]
    if not texts:
        raise InputError(
            "the read-out `channel` needs an input that is a text",
            hint="Use the read-out `choice`.",
        )
    return tuple(name for name in texts if inputs.get(name) is not None)


def own_part(
    tokenizer: Tokenizer,
    format: Format,
    signature: type[dspy.Signature],
    demos: Sequence[Values],
    inputs: Values,
    prompt: Prompt,
) -> ScoreRequest:
    """What is scored of a label's prompt, which shows `demos`: from the first token of its text inputs to the one that
    follows the last of them.
    """
    opened: Mapping[str, Any] = {**inputs, **dict.fromkeys(texts_of(signature, inputs), OPEN)}
    head = format.head(signature, demos, opened)
    text = tokenizer.chat(head.turns) if head.turns else head.text
    other = tokenizer.start() + _encoded(tokenizer, text)  # type: ignore[arg-type]  # an object is hashable
    ids = prompt.ids
    first = max(1, min(_alike(ids, other), len(ids) - 1))
    last = len(ids) - _alike(ids[:first:-1], other[:first:-1])
    return ScoreRequest(ids[:first], (ids[first : last + 1],))


@lru_cache(maxsize=1024)
def _encoded(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tokenizer.encode(text)


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of the first tokens are the same."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(one), len(other)))
