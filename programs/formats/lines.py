"""Answers made of `Label: value` lines, or of one value alone: what `completion`, `turns` and `chat` have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, ClassVar

from ...errors import ReadError
from ...signatures import choices
from ...signatures import grammar as value_grammar
from ...signatures import read as read_value
from ...signatures import write as write_value
from .base import Format, Signature, Values
from .fields import absent, is_bounded, is_text, kind, labels, one_line, present
from .grammars import BLOCK_END, PARAGRAPH, SPACE_END, TEXT, Answer

MISSING = "a line that starts with {label!r}"


class Lines(Format):
    """One line an output: `Label: value`. A text may go on over more lines, up to one that starts with a known label.

    Reading is tolerant: the case of labels, bold labels, words before the first label, a second answer after the first,
    and more lines after a value that fills one line (a choice, a number) do no harm.

    `blocks` says that a blank line ends the answer.
    """

    blocks: ClassVar[bool] = False

    def bare(self, signature: Signature) -> bool:
        """Whether the answer is the one output's value without a label."""
        return False

    def lead(self, signature: Signature, field: str, before: Values) -> str:
        """The lines of the fields before, and the label."""
        if self.bare(signature):
            return ""
        earlier = list(signature.output_fields)[: list(signature.output_fields).index(field)]
        shown = {name: before[name] for name in earlier if name in before}
        return (f"{self.answer(signature, shown)}\n" if shown else "") + f"{labels(signature)[field]}:"

    def write(self, signature: Signature, field: str, value: Any) -> str:
        """The value, after one space where a label stands before it."""
        text = write_value(value, kind(signature, field))
        return text if self.bare(signature) else f" {text}"

    def answer(self, signature: Signature, outputs: Values) -> str:
        """The lines, or the value alone."""
        named, bare = labels(signature), self.bare(signature)
        return "\n".join(
            ("" if bare else f"{named[name]}:") + self.write(signature, name, outputs[name])
            for name in present(signature.output_fields, outputs)
        )

    def ends(self, signature: Signature, field: str) -> tuple[str, ...]:
        """A line's end for a value that fills one line; for a text, a line that starts with another field's label.

        With `blocks`, a text also ends at a blank line.
        """
        if one_line(kind(signature, field)):
            return ("\n",)
        if self.bare(signature):
            return ()
        names, named = list(signature.output_fields), labels(signature)
        here = names.index(field)
        others = [*names[here + 1 : here + 2], *signature.input_fields, *([field] if len(names) == 1 else [])]
        return (*(("\n\n",) if self.blocks else ()), *(f"\n{named[name]}:" for name in others))

    def stops(self, signature: Signature) -> tuple[str, ...]:
        """As in the base; the end of a line ends no answer that has several."""
        ends = super().stops(signature)
        if "\n" in ends and len(signature.output_fields) > 1:
            named = labels(signature)
            return (*(("\n\n",) if self.blocks else ()), *(f"\n{named[name]}:" for name in signature.input_fields))
        return ends

    def parse(self, signature: Signature, completion: str) -> dict[str, Any]:
        """The outputs by their labels; without the first label, the first output is what stands at the start."""
        return self._read_lines(signature, completion)

    def _read_lines(self, signature: Signature, completion: str) -> dict[str, Any]:
        named = labels(signature)
        first = next(iter(signature.output_fields))
        bare = self.bare(signature)
        texts = {first: _unlabelled(completion, named[first])} if bare else self._sections(signature, completion)
        values = {}
        for name in signature.output_fields:
            if name in texts:
                values[name] = _typed(texts[name].strip(), kind(signature, name), name)
            else:
                values[name] = absent(signature, name, completion, MISSING.format(label=f"{named[name]}:"))
        return values

    def _sections(self, signature: Signature, completion: str) -> dict[str, str]:
        """The text of each output that the answer holds."""
        named = labels(signature)
        outputs = {named[name].casefold(): name for name in signature.output_fields}
        marks = list(_label_pattern(named.values()).finditer(completion))
        first = next(iter(signature.output_fields))
        sections: dict[str, str] = {}
        if not any(outputs.get(mark["label"].casefold()) == first for mark in marks):
            until = marks[0].start() if marks else len(completion)
            if completion[:until].strip():
                sections[first] = completion[:until]
        ends = [*(mark.start() for mark in marks[1:]), len(completion)]
        for mark, end in zip(marks, ends, strict=False):
            name = outputs.get(mark["label"].casefold())
            if name is None and not sections:
                continue  # the inputs, repeated before the answer
            if name is None or name in sections:
                break  # the answer is over, and the model goes on with the next
            sections[name] = completion[mark.end() : end]
        last = list(signature.output_fields)[-1]
        if self.blocks and last in sections:
            sections[last] = sections[last].strip().split("\n\n")[0]
        return sections

    def grammar(self, signature: Signature) -> str:
        """Every label in its place. A text is at least one character; with `blocks` it has no blank line."""
        answer, names, named = Answer(), list(signature.output_fields), labels(signature)
        for here, name in enumerate(names):
            type_ = kind(signature, name)
            if here == 0 and not self.bare(signature):
                answer.literal(f"{named[name]}:")
            if not self.bare(signature):
                answer.literal(" ")
            following = f"\n{named[names[here + 1]]}:" if here + 1 < len(names) else ""
            if is_bounded(type_):
                ending = BLOCK_END if self.blocks and not following else SPACE_END
                answer.bounded(type_, name, suffix=following, also=PARAGRAPH if self.blocks else "", ending=ending)
            elif is_text(type_) and following:
                answer.until(following, PARAGRAPH if self.blocks else TEXT)
            elif is_text(type_):
                answer.value(f"/{PARAGRAPH}({BLOCK_END})?/" if self.blocks else f"/{TEXT}/")
            else:
                answer.value(value_grammar(type_, field=name))
                answer.literal(following)
                if self.blocks and not following and not _closed(type_):
                    answer.optional(BLOCK_END)
        return str(answer)


def _closed(type_: Any) -> bool:
    """Whether a value of this type can be seen to be whole: no value is the start of another."""
    values = sorted(choices(type_) or ())
    return bool(values) and not any(b.startswith(a) for a, b in pairwise(values))


def _label_pattern(named: Iterable[str]) -> re.Pattern[str]:
    alternatives = "|".join(re.escape(label) for label in sorted(named, key=len, reverse=True))
    return re.compile(rf"^[ \t]*(?:\*\*|__)?(?P<label>{alternatives})[ \t]*(?:(?:\*\*|__):|:(?:\*\*|__)?)", re.I | re.M)


def _unlabelled(completion: str, label: str) -> str:
    """The text without the label at its start, which some models write all the same."""
    text = completion.strip()
    mark = _label_pattern([label]).match(text)
    return text[mark.end() :] if mark and text[mark.end() :].strip() else text


def _typed(text: str, type_: Any, field: str) -> Any:
    """The value that `text` holds; of a value that fills one line, more lines may follow."""
    if one_line(type_) and "\n" in text:
        try:
            return read_value(text.split("\n")[0].strip(), type_, field=field)
        except ReadError:
            pass  # it may stand further down: the whole text is tried, and tells what is wrong
    return read_value(text, type_, field=field)
