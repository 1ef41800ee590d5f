"""Running text without a chat template: the instruction, then one block a demo, the last block left open.

    Classify the question.

    Question: Who wrote Hamlet?
    Label: person

    Question: Where is Troy?
    Label:

Base models, and small instruction-tuned ones, do well on this: it looks like their pre-training data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from .base import Head, Signature, Values
from .fields import instruction, labels, lines, present, requirement, unfold
from .lines import Lines


class Completion(Lines):
    """Blocks of `Label: value` lines with a blank line between them; a blank line ends the answer.

    Option `describe` (default false): the outputs' descriptions and types follow the instruction.
    """

    name: ClassVar[str] = "completion"
    opens = True
    blocks: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({"describe": False})

    def head(self, signature: Signature, demos: Sequence[Values], inputs: Values) -> Head:
        """The text up to the end of the inputs' last line; `lead` follows at once."""
        signature, demos = unfold(signature, demos, inputs)
        parts = [instruction(signature)]
        if self.options["describe"]:
            named = labels(signature)
            known = ((named[name], requirement(signature, name)) for name in signature.output_fields)
            parts[0] = "\n".join([*parts, *(f"{label}: {text}" for label, text in known if text)])
        for demo in demos:
            shown = lines(signature, present(signature.input_fields, demo), demo)
            parts.append("\n".join(part for part in (shown, self.answer(signature, demo)) if part))
        parts.append(lines(signature, present(signature.input_fields, inputs), inputs))
        text = "\n\n".join(part for part in parts[:-1] if part) + "\n\n" if any(parts[:-1]) else ""
        return Head(text=text + (f"{parts[-1]}\n" if parts[-1] else ""))

    def parse(self, signature: Signature, completion: str) -> dict[str, Any]:
        """The outputs of the first block. What comes after it, usually the next block invented, is ignored.

        The first label may be missing: an engine that was only given text returns what follows it.
        """
        first = self.lead(signature, next(iter(signature.output_fields)), {})
        if not completion.lstrip().casefold().startswith(first.casefold()):
            completion = f"{first} {completion.lstrip()}"
        return self._read_lines(signature, completion)
