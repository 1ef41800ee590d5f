"""What references refer to: whether it exists, of which type it is, and whether that fits where it is asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..errors import InputError, nearest
from ..signatures import check_value, type_name
from .problems import KeyProblems, Keys
from .references import INPUTS, Reference, Template, fits, parse_template

Types = dict[str, Any]


class Linker:
    """Resolves sources against `fields`: node (or `inputs`) -> field -> type.

    `wrong` are nodes and inputs (`inputs.NAME`) that exist but are known to be wrong; nothing is said about
    references to them. What is wrong with a reference goes to `problems`.
    """

    def __init__(self, fields: Mapping[str, Types], wrong: Collection[str], problems: KeyProblems) -> None:
        self.fields = fields
        self.wrong = wrong
        self.problems = problems

    def source(self, keys: Keys, value: Any, target: Any, hint: str | None = None) -> Any:
        """The source that stands at `keys`: a `Template` whose references exist and fit, or a constant of the type."""
        try:
            template = parse_template(value) if isinstance(value, str) else None
            constant = value if template is None else template.plain
            if constant is not None or template is None:
                self._check_constant(value)
                return check_value(constant, target, field=str(keys[-1]))
        except InputError as error:
            self.problems.raised_at(keys, error)
            return None
        kinds = [self._type_of(reference, keys, hint) for reference in template.references]
        if template.whole is None and not fits(str, target):
            self.problems.at(keys, "text with references in it is str", expected=type_name(target))
        elif template.whole and kinds[0] is not None and not fits(kinds[0], target):
            self.problems.at(keys, f"{template.whole} is {type_name(kinds[0])}", expected=type_name(target))
        return template

    def _check_constant(self, value: Any) -> None:
        """Refuse a constant that was meant as a reference: `route.queue`, or `${...}` inside a list."""
        if isinstance(value, str):
            node, dot, name = value.strip().partition(".")
            if dot and name in self.fields.get(node, ()):
                raise InputError(f"found the text {value!r}", expected=f"the reference {Reference(node, name)}")
        elif "${" in str(value):
            raise InputError("found a reference inside a list or mapping", expected="a reference or text")

    def _type_of(self, reference: Reference, keys: Keys, hint: str | None) -> Any:
        """The type of what is referred to; None where there is no such thing (which is noted, unless known)."""
        node, name = reference.node, reference.field
        if node in self.wrong or f"{node}.{name}" in self.wrong:
            return None
        if node not in self.fields:
            near = nearest(node, self.fields)
            message, valid = f"there is no node {node!r}", list(self.fields)
            close = near and str(Reference(near, name))
        elif name not in self.fields[node]:
            near = nearest(name, self.fields[node])
            what = "the program has no input" if node == INPUTS else f"node {node!r} has no output"
            message, valid = f"{what} {name!r}", list(self.fields[node])
            close = near and str(Reference(node, near))
        else:
            return self.fields[node][name]
        expected = None if close or not valid else f"one of {', '.join(valid)}"
        self.problems.at(keys, f"{reference}: {message}", nearest=close, expected=expected, hint=hint)
        return None


def reads(sources: Collection[Any]) -> tuple[str, ...]:
    """The nodes that these sources read, each once, in order."""
    templates = [source for source in sources if isinstance(source, Template)]
    nodes = [reference.node for template in templates for reference in template.references]
    return tuple(dict.fromkeys(node for node in nodes if node != INPUTS))
