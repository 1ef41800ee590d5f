"""What a format is: how an instruction, demos and inputs become text, and how outputs are read back out of text.

A format is a `dspy.Adapter`, and pure text: it knows nothing of tokens or of the model. It answers four questions.

- `head`: what stands before the answer: turns of a chat, or one running text without a chat template;
- `lead`: the scaffolding that stands in the answer just before a field's value (a label, a quotation mark, a tag);
- `write` and `ends`: how a value is written there, and the strings that can only come after it;
- `parse`: the outputs, read back from a whole answer.

From these the read-outs are built: free text generates after `head` (and after the first `lead`, where the format opens
the answer itself), a choice scores `write(value)` after `lead`, a constraint forces every `lead` and masks every value.

Three things hold for every format, and its tests ask for them:

- `lead(second, {first: value})` starts with `lead(first, {}) + write(first, value)`, and `answer` with the last `lead`
  and its `write`: scoring, forcing and showing a demo are one text, cut at different places;
- `parse(answer(outputs)) == outputs`, unless a value holds the format's own scaffolding;
- `grammar` accepts `answer(outputs)`, where every text is at least one character long.

A space that belongs between a label and its value is the start of `write`, never the end of `lead`: byte-pair
tokenizers glue it to the word that follows, and a prompt that ends in a space leaves the model where it has never been.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import dspy
from dspy.utils.callback import with_callbacks

from ...errors import InputError, ReadError, nearest
from ...models.engine import Turn
from .fields import lines, present

Values = Mapping[str, Any]
Signature = type[dspy.Signature]


@dataclass(frozen=True)
class Head:
    """Everything before the answer. Either `turns` (the target's chat template is applied) or a running `text`."""

    turns: tuple[Turn, ...] = ()
    text: str = ""


class Format(dspy.Adapter):
    """The base of every format.

    `name` is the registered name; `opens` says whether free text starts after the first field's `lead` (the format has
    written it) or the model has to write the scaffolding itself; `defaults` are the options that the format takes, with
    the values they have when they are not given. Raises `InputError` for an option that is unknown or of another type.
    """

    name: ClassVar[str]
    opens: bool = False
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for key, value in options.items():
            if key not in self.defaults:
                raise InputError(
                    f"the format {self.name!r} has no option {key!r}",
                    expected=f"one of {', '.join(self.defaults)}" if self.defaults else "no options",
                    nearest=nearest(key, self.defaults),
                )
            if type(value) is not type(self.defaults[key]):
                wanted = type(self.defaults[key]).__name__
                raise InputError(f"the format {self.name!r} got {value!r} for {key!r}", expected=f"a {wanted}")
        self.options: dict[str, Any] = {**self.defaults, **options}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Not dspy.Adapter's own hook: it wraps inherited methods once more per subclass, so that a callback would fire
        # for each level of the hierarchy. Here a class wraps what it defines.
        super(dspy.Adapter, cls).__init_subclass__(**kwargs)
        for method in ("format", "parse"):
            if method in cls.__dict__:
                setattr(cls, method, with_callbacks(cls.__dict__[method]))

    def __repr__(self) -> str:
        changed = {key: value for key, value in self.options.items() if value != self.defaults[key]}
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in changed.items())})"

    # ---- what every format defines

    @abstractmethod
    def head(self, signature: Signature, demos: Sequence[Values], inputs: Values) -> Head:
        """Instruction, demos and inputs, up to where the answer begins.

        Demos stand in the order given. A demo may lack fields: what it has is shown; one without the last output, or
        without any input, shows nothing and is left out. Up to the inputs, the head is the same for all inputs.
        """

    @abstractmethod
    def lead(self, signature: Signature, field: str, before: Values) -> str:
        """The whole answer's text from its start up to where the value of output `field` begins.

        `before` holds the values of the output fields that stand before it.
        """

    @abstractmethod
    def write(self, signature: Signature, field: str, value: Any) -> str:
        """The value's text as it follows `lead`.

        It includes what closes the value where the format has such a thing (a quotation mark, a tag), so that one
        value's text is not the start of another's. Where labels alone tell fields apart there is none: a value ends
        with its line or its turn, and "New York" starts like "New York City".
        """

    @abstractmethod
    def ends(self, signature: Signature, field: str) -> tuple[str, ...]:
        """The strings that end the value of `field` when it is generated as free text after its `lead`.

        The first that occurs ends it.
        """

    @abstractmethod
    def answer(self, signature: Signature, outputs: Values) -> str:
        """A whole answer, as a demo shows it. Outputs that are not given are left out."""

    @abstractmethod
    def parse(self, signature: Signature, completion: str) -> dict[str, Any]:
        """The outputs, typed, from a whole answer (`lead` of the first field included).

        Raises `ReadError`, which says which field could not be read and why.
        """

    @abstractmethod
    def grammar(self, signature: Signature) -> str:
        """The Lark grammar (llguidance's dialect) of a whole answer from its very start.

        Every `lead` is literal, every value masked by its type.
        """

    def stops(self, signature: Signature) -> tuple[str, ...]:
        """The strings that end a whole answer generated as free text, from its start or from after the first `lead`."""
        return self.ends(signature, list(signature.output_fields)[-1])

    # ---- dspy.Adapter's side

    def format(self, signature: Signature, demos: Sequence[Values], inputs: Values) -> list[dict[str, Any]]:
        """The head as chat messages, for any `dspy.LM`; a running text, with its first `lead`, is one user message.

        Chat servers do not agree on answers begun for the model, so in a chat the model writes even the first `lead`.
        """
        head = self.head(signature, demos, inputs)
        if head.turns:
            return [{"role": turn.role, "content": turn.content} for turn in head.turns]
        opened = self.lead(signature, next(iter(signature.output_fields)), {}) if self.opens else ""
        return [{"role": "user", "content": head.text + opened}]

    def format_user_message_content(
        self, signature: Signature, inputs: Values, prefix: str = "", suffix: str = "", main_request: bool = False
    ) -> str:
        """The inputs as a user would write them; `dspy.ReAct` shows its trajectory with this."""
        shown = lines(signature, present(signature.input_fields, inputs), inputs)
        return "\n\n".join(part for part in (prefix, shown, suffix) if part)

    def format_assistant_message_content(
        self, signature: Signature, outputs: Values, missing_field_message: str | None = None
    ) -> str:
        """The answer that holds `outputs`."""
        return self.answer(signature, outputs)

    def format_finetune_data(
        self, signature: Signature, demos: Sequence[Values], inputs: Values, outputs: Values
    ) -> dict[str, list[dict[str, Any]]]:
        """One training example: the messages of `format`, and the answer as the assistant's."""
        answer = {"role": "assistant", "content": self.answer(signature, outputs)}
        return {"messages": [*self.format(signature, demos, inputs), answer]}

    def _call_postprocess(
        self,
        processed_signature: Signature,
        original_signature: Signature,
        outputs: list[dict[str, Any] | str],
        lm: Any,
        lm_kwargs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        # DSPy's modules and teleprompters recover from AdapterParseError alone.
        try:
            values: list[dict[str, Any]] = super()._call_postprocess(
                processed_signature, original_signature, outputs, lm, lm_kwargs
            )
        except ReadError as error:
            raise dspy.AdapterParseError(
                self.name, original_signature, "\n".join(map(str, outputs)), message=str(error)
            ) from error
        return values
