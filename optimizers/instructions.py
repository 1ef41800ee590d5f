"""Instructions to try: the user's own, and the user's own under prompting principles.

Each principle is a small function from an instruction and a signature to a new instruction, or None where it does not
apply. The numbers are those of Bsharat et al. 2023, "Principled Instructions Are All You Need" (arXiv 2312.16171),
table 1.
"""

from __future__ import annotations

from collections.abc import Callable

import dspy

from ..signatures import choices, describe, field_types

Principle = Callable[[str, type[dspy.Signature]], str | None]


def _labels(signature: type[dspy.Signature]) -> tuple[str, ...] | None:
    found = [choices(field.annotation) for field in signature.output_fields.values()]
    return next((labels for labels in found if labels), None)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?", ":")) else text + "."


def one_of(instruction: str, signature: type[dspy.Signature]) -> str | None:
    """Name the labels that may be answered (output format, principles 8 and 20)."""
    labels = _labels(signature)
    return None if labels is None else f"{_sentence(instruction)} Answer with one of: {', '.join(labels)}."


def your_task(instruction: str, signature: type[dspy.Signature]) -> str | None:
    """'Your task is' and 'You MUST' (principle 9)."""
    return f"Your task: {_sentence(instruction)} You MUST follow the examples exactly."


def role(instruction: str, signature: type[dspy.Signature]) -> str | None:
    """Give the model a role (principle 16)."""
    return f"You are an expert who does this every day. {_sentence(instruction)}"


def brief(instruction: str, signature: type[dspy.Signature]) -> str | None:
    """Say in the affirmative what the output is to be (principle 4)."""
    types = field_types(signature)
    if any(describe(types[name]) for name in signature.output_fields):
        return f"{_sentence(instruction)} Give the answer only."
    return f"{_sentence(instruction)} Use as few words as needed, taken from the input where possible."


def careful(instruction: str, signature: type[dspy.Signature]) -> str | None:
    """Break the task down (principle 3)."""
    inputs = ", ".join(name.replace("_", " ") for name in signature.input_fields)
    return f"First read the {inputs} carefully. Then do this: {_sentence(instruction)}"


def complete(instruction: str, signature: type[dspy.Signature]) -> str | None:
    """Ask for everything in the input to be used (a requirement stated plainly, principle 25)."""
    return (
        None if _labels(signature) else f"{_sentence(instruction)} Use every fact in the input, and add nothing to it."
    )


PRINCIPLES: tuple[Principle, ...] = (one_of, your_task, role, brief, careful, complete)


def instructions_for(signature: type[dspy.Signature], limit: int) -> tuple[str, ...]:
    """Up to `limit` instructions (at least one): the signature's own first, then one per principle that applies."""
    own = signature.instructions
    found = [own]
    for principle in PRINCIPLES:
        made = principle(own, signature)
        if made is not None and made not in found:
            found.append(made)
    return tuple(found[: max(1, limit)])
