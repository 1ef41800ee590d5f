"""The names that a field may have, and what one field of a signature is."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from typing import Any

from .messages import Where, clip


@dataclass(frozen=True)
class FieldSpec:
    """One field: its name, its type, and what it holds in words (None: DSPy's own placeholder)."""

    name: str
    type_: Any = str
    description: str | None = None


def check_name(name: Any, where: Where, *, record: bool = False) -> str:
    """`name`, when a field of a signature (or, with `record`, of a pydantic model) can be called so.

    DSPy 3.4 refuses some names late or not at all: those of attributes of a signature and of a prediction, on which
    `prediction.labels` would be a method and not the field, and the keyword arguments that `dspy.Predict` takes.
    """
    if not isinstance(name, str):
        hint = "YAML reads an unquoted yes, no, on and off as true and false." if isinstance(name, bool) else None
        raise where.error(f"found the field name {name!r}", expected="text", hint=hint)
    if not name.isidentifier() or name.startswith("_"):
        possible = re.sub(r"\W+", "_", name).strip("_")
        raise where.error(
            f"found the field name {clip(name)}",
            expected="letters, digits and underscores, a letter first",
            nearest=possible if possible.isidentifier() and not keyword.iskeyword(possible) else None,
        )
    if keyword.iskeyword(name):
        raise where.error(f"found the field name {name!r}, a word of Python", expected=f"another name, such as {name}_")
    owner = _pydantic_keeps(name) if record else _dspy_keeps(name)
    if owner:
        raise where.error(
            f"found the field name {name!r}, which {owner} keeps for itself", expected=f"another name, such as {name}_"
        )
    return name


def _pydantic_keeps(name: str) -> str | None:
    """`pydantic`, when a field of that name would hide a part of a pydantic model."""
    from pydantic import BaseModel

    reserved = hasattr(BaseModel, name) or name.startswith(("model_dump", "model_validate"))
    return "pydantic" if reserved else None


def _dspy_keeps(name: str) -> str | None:
    """`DSPy` or `pydantic`, when a field of that name would not reach the model or not come back."""
    import dspy

    if name in ("self", "signature", "demos", "config", "lm"):
        return "DSPy"
    if _pydantic_keeps(name):
        return "pydantic"
    return "DSPy" if hasattr(dspy.Signature, name) or hasattr(dspy.Prediction, name) else None
