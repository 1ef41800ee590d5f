"""The read-out `channel`: a label is judged by how likely the inputs are among those that have it.

A choice by likelihood asks which label follows the inputs. Its reverse asks which label's inputs these could be: each
label has a prompt of its own, which shows the demos of that label and no others, and is worth the log-likelihood of the
inputs in it (Min et al. 2022, "Noisy Channel Language Model Prompting for Few-Shot Text Classification", ACL;
https://aclanthology.org/2022.acl-long.365). A model that is too small to follow a task still knows which texts are
alike; what a label is called matters little, and none is favoured because its name is a frequent word.

The demos are the same for all inputs, so an engine that shares prefixes computes them once: a call costs its inputs
once for each label, however many demos there are.

Of several outputs with labels each is judged by itself. Demos that serve one of them have labels of the others too, and
more of some than of others: so a prompt shows as many demos of its label as `ReadOut.per_label` says, the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import dspy

from ..errors import InputError
from ..models.engine import ScoreRequest, Tokenizer
from ..signatures import choices, write
from .formats.base import Format, Values
from .prompt import Prompt
from .spans import is_text

OPEN = "\N{OBJECT REPLACEMENT CHARACTER}"  # no text begins or ends like it


def labelled_outputs(signature: type[dspy.Signature]) -> dict[str, tuple[str, ...]]:
    """The outputs with a finite set of values, and the labels of each."""
    found = {name: choices(field.annotation) for name, field in signature.output_fields.items()}
    return {name: tuple(labels) for name, labels in found.items() if labels}


def demos_of(signature: type[dspy.Signature], demos: Sequence[Values], field: str) -> dict[str, tuple[Values, ...]]:
    """The demos that have the output `field`, in order, by its text."""
    annotation = signature.output_fields[field].annotation
    found: dict[str, list[Values]] = {}
    for demo in demos:
        if field in demo:
            found.setdefault(write(demo[field], annotation), []).append(demo)
    return {label: tuple(mine) for label, mine in found.items()}


def first_of_each(signature: type[dspy.Signature], demos: Sequence[Values], most: int) -> tuple[Values, ...]:
    """The demos, in order, that are among the first `most` of some label of some output."""
    outputs = labelled_outputs(signature)
    counts: Counter[tuple[str, str]] = Counter()
    kept = []
    for demo in demos:
        texts = {name: write(demo[name], signature.output_fields[name].annotation) for name in outputs if name in demo}
        mine = [(name, text) for name, text in texts.items() if text in outputs[name]]
        if any(counts[key] < most for key in mine):
            kept.append(demo)
        counts.update(mine)
    return tuple(kept)


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
