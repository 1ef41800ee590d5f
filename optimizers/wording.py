"""How an instruction is put together: sentences added to it, and a signature's fields as people say them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import dspy

from ..programs.formats.fields import is_bounded, is_text, kind, labels
from ..programs.modules import REASONING
from ..signatures import choices

Signature = type[dspy.Signature]

ENDED = re.compile(r"[.!?:;\u2026\u3002\uff01\uff1f\uff1a][\"'\u2019\u201d)\]]*$")


# ---- sentences


def sentence(text: str) -> str:
    """`text` with a full stop, where nothing ends it."""
    return text if ENDED.search(text) else f"{text}."


def has_lines(own: str) -> bool:
    """Whether an instruction has several lines: its last may be the item of a list, which takes no full stop."""
    return "\n" in own


def followed(instruction: str, *sentences: str) -> str | None:
    """The instruction, then `sentences`; on a line of their own where it has several."""
    own, added = instruction.strip(), " ".join(sentences)
    if added in own:
        return None
    return added if not own else f"{own}\n{added}" if has_lines(own) else f"{sentence(own)} {added}"


def followed_below(instruction: str, lines: str) -> str | None:
    """The instruction, then `lines` below it."""
    own = instruction.strip()
    if lines in own:
        return None
    return lines if not own else f"{own if has_lines(own) else sentence(own)}\n{lines}"


def preceded(instruction: str, lead: str) -> str | None:
    """`lead`, then the instruction."""
    own = instruction.strip()
    if lead in own or not own:
        return None
    return f"{lead}\n{own}" if has_lines(own) else f"{lead} {sentence(own)}"


def holds(instruction: str, label: str) -> bool:
    """Whether the instruction says `label`, as whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(label)}(?!\w)", instruction, re.IGNORECASE) is not None


def listed(found: Sequence[str]) -> str:
    """`billing, technical`."""
    return ", ".join(map(quoted, found))


def quoted(label: str) -> str:
    """A label as it is, or in quotes where its ends would not be seen in a list."""
    plain = label and label == label.strip() and not re.search(r"[,\r\n]|[.!?]$", label)
    return label if plain else json.dumps(label, ensure_ascii=False)


# ---- fields


def the(signature: Signature, names: Sequence[str], article: str = "the") -> str:
    """`the context, title and question`."""
    shown = labels(signature)
    said = [name if shown[name] == name else " ".join(name.split("_")).strip() for name in names]
    listed = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
    return f"{article} {listed}".strip()


def inputs_of(signature: Signature, *, text: bool = False) -> list[str]:
    """The inputs that are shown as fields. `text`: those that are texts."""
    shown = {name: field for name, field in signature.input_fields.items() if field.annotation is not dspy.History}
    return [name for name in shown if not text or is_text(kind(signature, name))]


def results_of(signature: Signature) -> list[str]:
    """The outputs that are asked for: not the reasoning before them."""
    names = list(signature.output_fields)
    return [name for name in names if name != REASONING] or names


def texts_of(signature: Signature) -> list[str]:
    """The results that are free text."""
    return [name for name in results_of(signature) if is_free(kind(signature, name))]


def has_room(signature: Signature) -> bool:
    """Whether an output is text to think in: reasoning, or any free text."""
    return any(name == REASONING or is_free(kind(signature, name)) for name in signature.output_fields)


def is_free(type_: Any) -> bool:
    """Whether a value of this type is text of any form."""
    return is_text(type_) and not is_bounded(type_)


def all_finite(signature: Signature, names: Iterable[str]) -> bool:
    """Whether each of these outputs has a finite set of values."""
    return all(choices(kind(signature, name)) for name in names)
