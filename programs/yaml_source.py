"""YAML in and out: plain data with the line of every key, and text that a person can diff.

Reading follows the YAML 1.2 core schema (https://yaml.org/spec/1.2.2/#103-core-schema) on PyYAML's parser, because
the 1.1 rules that PyYAML has by default turn the labels `yes`, `no` and `on` into booleans, `12:30` into 750, a date
into a date object, and leave `1e-3` as text. Data is always plain: null, booleans, whole numbers, numbers, text,
lists and mappings with text keys. Anchors and merge keys (`<<`) work. Refused: keys that stand twice, tags that build
objects, an anchor that holds itself, nesting beyond `MAX_DEPTH`, files beyond `MAX_BYTES`, and aliases that multiply
a small file into a huge one ("billion laughs"): they may add at most `MAX_ALIASED` nodes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ..errors import InputError
from ..files import read_text
from .problems import Keys, Problems, dotted

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 64
MAX_ALIASED = 100_000

_TAG = "tag:yaml.org,2002:"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("merge", r"<<", "<"),
)
_HINTS = (
    ("mapping values are not allowed", "Text that holds ': ' goes in quotes."),
    ("'\\t' that cannot start", "Indent with spaces, not with tabs."),
    ("while parsing a flow", "Between braces or brackets, text that holds one of , [ ] { } goes in quotes."),
    ("that cannot start any token", "Text that begins with this character goes in quotes."),
)
_BREAKS = re.compile("[\x85\u2028\u2029]")


@dataclass(frozen=True)
class Source:
    """A YAML file as plain data. `lines` maps the path of every key and list item to its line, from 1."""

    path: str
    data: Any
    lines: Mapping[Keys, int] = field(default_factory=dict, repr=False)

    def line(self, keys: Iterable[str | int]) -> int | None:
        """The line where this key path stands, or its nearest parent that stands somewhere."""
        path = tuple(keys)
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def load_yaml(path: str | os.PathLike[str], problems: Problems | None = None) -> Source:
    """Read a YAML file. Raises `InputError` with the line and what was found there.

    Where what is wrong does not hide the rest (a key that stands twice), it is noted in `problems`, if given, and not
    raised.
    """
    return parse_yaml(read_text(path, MAX_BYTES), os.fspath(path), problems)


def parse_yaml(text: str, path: str, problems: Problems | None = None) -> Source:
    """As `load_yaml`, from `text`; `path` names it in errors."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(
            f"holds the control character U+{ord(text[error.position]):04X}", path=path, line=line
        ) from None
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, path) from None
    if node is None:
        raise InputError("the file is empty", path=path)
    builder = _Builder(Problems(path) if problems is None else problems, limit=len(text) + MAX_ALIASED)
    data = builder.build(node, ())
    if problems is None:
        builder.problems.stop()
    return Source(path, data, builder.lines)


def dump_yaml(data: Any) -> str:
    """`data` (as `load_yaml` gives it; tuples as lists) as YAML that reads back equal.

    Keys keep their order, text of several lines is a `|` block, letters of every script stay as they are, and what a
    YAML 1.1 reader would take for a boolean or a date is quoted.
    """
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=120)


def _syntax_error(error: yaml.MarkedYAMLError, text: str, path: str) -> InputError:
    mark = error.problem_mark or error.context_mark
    problem = ", ".join(part for part in (error.context, error.problem) if part)
    if mark is None:
        return InputError(f"not valid YAML: {problem}", path=path)
    lines = text.splitlines()
    place = repr(lines[mark.line].strip()[:60]) if mark.line < len(lines) else "the end of the file"
    hint = next((hint for sign, hint in _HINTS if sign in problem), None)
    return InputError(f"not valid YAML: {problem}, at {place}", path=path, line=mark.line + 1, hint=hint)


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the core schema; it stops at nesting that would exhaust the stack."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"nested more than {MAX_DEPTH} deep", problem_mark=mark)
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """PyYAML's emitter, without anchors; it quotes what either YAML version would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # items stand further in than the key that holds them

    def choose_scalar_style(self) -> Any:
        style = super().choose_scalar_style()
        text = getattr(self.event, "value", "")
        # Labels in signatures: "a -> b: Literal['x']" reads better than 'a -> b: Literal[''x'']'.
        plain = "'" in text and not set(text) & set('"\\') and len(text) < 80 and text.isprintable() and text.isascii()
        return '"' if style == "'" and plain else style

    def represent_text(self, text: str) -> Node:
        # A line break other than \n is read back as \n unless it is escaped.
        style = '"' if _BREAKS.search(text) else "|" if "\n" in text else None
        return self.represent_scalar(_TAG + "str", text, style=style)


def _register() -> None:
    _Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1's
    for name, pattern, first in _CORE_SCHEMA:
        for loader in (_Loader, _Dumper):
            loader.add_implicit_resolver(_TAG + name, re.compile(rf"^(?:{pattern})$"), list(first))
    _Dumper.add_representer(str, _Dumper.represent_text)
    _Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)


_register()


def _whole_number(text: str) -> int:
    return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)


def _number(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: Mapping[str, Callable[[str], Any]] = {
    _TAG + "null": lambda text: None,
    _TAG + "bool": lambda text: text.lower() == "true",
    _TAG + "int": _whole_number,
    _TAG + "float": lambda text: _number(text.lower()),
    _TAG + "str": str,
}


class _Builder:
    """Turns the node graph into plain data, notes the lines, and counts what aliases repeat."""

    def __init__(self, problems: Problems, limit: int) -> None:
        self.problems = problems
        self.lines: dict[Keys, int] = {}
        self._left = limit
        self._open: set[int] = set()

    def build(self, node: Node, keys: Keys) -> Any:
        """The plain data of `node`, which stands at the key path `keys`."""
        self.lines.setdefault(keys, node.start_mark.line + 1)
        self._enter(node, keys)
        try:
            if isinstance(node, MappingNode) and node.tag == _TAG + "map":
                pairs = self._pairs(node, keys)
                self.lines.update({(*keys, key): pair[0].start_mark.line + 1 for key, pair in pairs.items()})
                return {key: self.build(value, (*keys, key)) for key, (_, value) in pairs.items()}
            if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
                return [self.build(item, (*keys, i)) for i, item in enumerate(node.value)]
            if isinstance(node, ScalarNode) and node.tag in _SCALARS:
                return self._scalar(node, keys)
        finally:
            self._open.discard(id(node))
        tag = node.tag.replace(_TAG, "!!")
        self._add(node, keys, f"the tag {tag} is not allowed", expected="plain text, numbers, lists or mappings")
        return None

    def _scalar(self, node: ScalarNode, keys: Keys) -> Any:
        try:
            return _SCALARS[node.tag](node.value)
        except ValueError:
            expected = "a whole number" if node.tag == _TAG + "int" else "a number"
            self._add(node, keys, f"found {node.value[:40]!r}", expected=expected)
            return None

    def _pairs(self, node: MappingNode, keys: Keys) -> dict[str, tuple[Node, Node]]:
        """Key and value nodes by key; a mapping's own keys win over merged ones, and earlier merges over later."""
        pairs: dict[str, tuple[Node, Node]] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                merged += value_node.value if isinstance(value_node, SequenceNode) else [value_node]
            elif not isinstance(key_node, ScalarNode) or key_node.tag != _TAG + "str":
                shown = repr(key_node.value) if isinstance(key_node, ScalarNode) else "a list or mapping"
                self._add(key_node, keys, f"found {shown} as a key", expected="text", hint="Put the key in quotes.")
            elif key_node.value in pairs:
                first = pairs[key_node.value][0].start_mark.line + 1
                self._add(key_node, (*keys, key_node.value), f"this key stands twice, first in line {first}")
            else:
                pairs[key_node.value] = (key_node, value_node)
        for base in merged:
            if not isinstance(base, MappingNode):
                self._add(base, (*keys, "<<"), "found something else", expected="an alias of a mapping")
                continue
            self._enter(base, keys)
            for key, pair in self._pairs(base, keys).items():
                pairs.setdefault(key, pair)
            self._open.discard(id(base))
        return pairs

    def _enter(self, node: Node, keys: Keys) -> None:
        self._left -= 1
        if self._left < 0 or len(keys) > MAX_DEPTH:
            raise InputError(
                "aliases repeat too much", path=self.problems.path, line=node.start_mark.line + 1, field=dotted(keys)
            )
        if id(node) in self._open:
            raise InputError(
                "an anchor holds itself", path=self.problems.path, line=node.start_mark.line + 1, field=dotted(keys)
            )
        self._open.add(id(node))

    def _add(
        self, node: Node, keys: Keys, message: str, *, expected: str | None = None, hint: str | None = None
    ) -> None:
        line = node.start_mark.line + 1
        self.problems.add(message, line=line, field=dotted(keys), expected=expected, hint=hint)
