"""Chat formats: demos as turns, or everything in the one turn that a person would write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from ...models.engine import Turn
from ...signatures import write as write_value
from .base import Head, Signature, Values
from .fields import instruction, kind, labels, lines, present, requirement, show, unfold
from .lines import Lines


def conversation(system: str, users: Sequence[str], answers: Sequence[str]) -> Head:
    """A system turn where there is something to say in it, then users' turns, each but the last answered."""
    turns = [Turn("system", system)] if system else []
    for user, answer in zip(users, [*answers, None], strict=True):
        turns.append(Turn("user", user))
        turns.extend([Turn("assistant", answer)] if answer is not None else [])
    return Head(turns=tuple(turns))


class Turns(Lines):
    """The instruction as the system's turn; every demo is a user's turn and the assistant's answer.

    A value stands alone in its turn where it is the only input, or the only output; several are `Label: value` lines.
    Option `labels` (default false): inputs and outputs always carry labels, and the answer is opened with the first.
    """

    name: ClassVar[str] = "turns"
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({"labels": False})
    labelled: bool = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.opens = self.labelled = self.options.get("labels", self.labelled)

    def bare(self, signature: Signature) -> bool:
        """A single output stands alone, unless labels are asked for."""
        return len(signature.output_fields) == 1 and not self.labelled

    def head(self, signature: Signature, demos: Sequence[Values], inputs: Values) -> Head:
        """The system's turn says the instruction, and what is known of the outputs beyond being text."""
        signature, demos = unfold(signature, demos, inputs)
        named = labels(signature)
        known = ((named[name], requirement(signature, name)) for name in signature.output_fields)
        system = [instruction(signature), *(f"{label}: {text}" for label, text in known if text)]
        return conversation(
            "\n".join(line for line in system if line),
            [user_turn(signature, values, labelled=self.labelled) for values in (*demos, inputs)],
            [self.answer(signature, demo) for demo in demos],
        )


class TurnsLabelled(Turns):
    """`turns` with `labels: true`, under a name of its own."""

    name: ClassVar[str] = "turns_labelled"
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    labelled = True


class Chat(Lines):
    """Everything in one user's turn: instruction, examples, inputs, and what is asked for."""

    name: ClassVar[str] = "chat"

    def bare(self, signature: Signature) -> bool:
        """A single output is asked for, and read, alone."""
        return len(signature.output_fields) == 1

    def head(self, signature: Signature, demos: Sequence[Values], inputs: Values) -> Head:
        """The examples show every field with its label, whatever the answer looks like."""
        signature, demos = unfold(signature, demos, inputs)
        parts = [instruction(signature)]
        if demos:
            parts.append("Here are some examples.")
            named = labels(signature)
            for demo in demos:
                shown = lines(signature, present(signature.input_fields, demo), demo)
                outputs = "\n".join(
                    f"{named[name]}: {write_value(demo[name], kind(signature, name))}"
                    for name in present(signature.output_fields, demo)
                )
                parts.append(f"{shown}\n{outputs}" if shown else outputs)
            parts.append("Now do the same for this one.")
        parts.append(lines(signature, present(signature.input_fields, inputs), inputs))
        parts.append(ask(signature))
        return Head(turns=(Turn("user", "\n\n".join(part for part in parts if part)),))


def user_turn(signature: Signature, values: Values, *, labelled: bool = False) -> str:
    """The inputs as one turn. A single input stands alone; where there is none, the turn asks for the outputs."""
    names = present(signature.input_fields, values)
    if len(signature.input_fields) == 1 and names and not labelled:
        return show(signature, names[0], values[names[0]])
    return lines(signature, names, values) or ask(signature)


def ask(signature: Signature) -> str:
    """What is asked for, in a sentence or as a template."""
    named = labels(signature)
    known = {name: requirement(signature, name) for name in signature.output_fields}
    if len(known) > 1:
        return "\n".join(
            ["Reply with these lines:", *(f"{named[name]}: {text or '...'}" for name, text in known.items())]
        )
    ((name, text),) = known.items()
    return f"Reply with only the {named[name].lower()}{f' ({text})' if text else ''}."
