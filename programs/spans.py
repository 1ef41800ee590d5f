"""The read-out `span`: a text output is copied from an input, word by word.

Answers that stand in the text (extractive question answering, fields of a document, quotations) are what small models
invent most often when they write freely: they answer from memory, or round a number. Under this mask the only texts
that can be written are runs of words of the chosen inputs, so that the model's probability goes to where in the input
the answer stands (llguidance's `%regex {"substring_chunks": ...}`, a suffix automaton over words).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dspy

from ..errors import InputError
from ..signatures import field_types
from ..signatures.types import shape
from .formats.base import Format
from .formats.grammars import quote

MARK = "\ue000"  # of Unicode's private use area: no text that is copied holds it
_PIECE = re.compile(r"\w+|\s+|[^\w\s]")  # where a span may begin and end: never inside a word
COPIED = 0.9  # the share of examples whose output stands in one input, from which on it counts as copied from there


def is_text(type_: Any) -> bool:
    """Whether an output of this type can be a span: plain text without further conditions."""
    taken = shape(type_)
    return taken.kind == "str" and not taken.optional and not taken.constrained


def sources_of(signature: type[dspy.Signature], chosen: Sequence[str]) -> tuple[str, ...]:
    """The inputs that spans are copied from: those chosen, or all that are text. Raises `InputError` for none."""
    texts = tuple(name for name, given in signature.input_fields.items() if shape(given.annotation).kind == "str")
    wrong = [name for name in chosen if name not in texts]
    if wrong or not texts:
        raise InputError(
            f"no text input is called {wrong[0]!r}" if wrong else "a span needs an input that is a text",
            field="readout.sources",
            expected=f"of {', '.join(texts)}" if texts else "an input of type str",
            hint="Use the read-out `text`, or name other sources.",
        )
    return tuple(chosen) or texts


def span_grammar(
    format_: Format, signature: type[dspy.Signature], field: str, texts: Iterable[str], ends: Sequence[str]
) -> str:
    """The Lark grammar of one field's value, as `format_` writes it, where the value is a span of one of `texts`.

    One of `ends` may close it: a model ends a line more readily than it ends its text.
    """
    prefix, suffix = format_.write(signature, field, MARK).split(MARK)

    def written(text: str) -> str:
        whole = format_.write(signature, field, f"{MARK}{text}{MARK}")  # formats trim, but not inside
        return whole[len(prefix) + len(MARK) : len(whole) - len(suffix) - len(MARK)]

    chunks = [[written(piece) for piece in _PIECE.findall(text)] for text in texts if text.strip()]
    spans = [
        f"SPAN_{i}: %regex {json.dumps({'substring_chunks': found})} & /(?s:\\S.*)/" for i, found in enumerate(chunks)
    ]
    if not spans:
        raise InputError(f"there is nothing that {field!r} could be copied from: the inputs are empty")
    after = [quote(suffix)] if suffix else [f"({' | '.join(map(quote, ends))})?"] if ends else []
    choice = f"({' | '.join(f'SPAN_{i}' for i in range(len(spans)))})"
    start = " ".join([*([quote(prefix)] if prefix else []), choice, *after])
    return "\n".join([f"start: {start}", *spans]) + "\n"


def copied_from(signature: type[dspy.Signature], examples: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The inputs that the text outputs of `examples` stand in, word for word; empty where they are not copies.

    Every text output must be found in one input, the same for nearly all examples (`COPIED`), and not be all of it.
    """
    types = field_types(signature)
    outputs = [name for name in signature.output_fields if is_text(types[name])]
    found = []
    for output in outputs:
        pairs = [(str(example[output]).strip(), example) for example in examples if example.get(output)]
        shares = {
            source: sum(_inside(text, example.get(source)) for text, example in pairs) / max(1, len(pairs))
            for source in signature.input_fields
        }
        best = max(shares, key=lambda name: shares[name], default=None)
        if best is None or not pairs or shares[best] < COPIED:
            return ()
        found.append(best)
    return tuple(dict.fromkeys(found))


def _inside(text: str, source: Any) -> bool:
    return isinstance(source, str) and len(text) < len(source) and text in source
