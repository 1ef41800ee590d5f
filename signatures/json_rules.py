"""The JSON values of a type as rules of Lark, made from its schema.

llguidance has a compiler of its own for JSON schemas, `%json`; this one is there because that one leaves a number's
digits without a limit, refuses the short form of small numbers (`1e-05`) beside a bound, and knows neither decimals nor
the calendar. Strings with a pattern and multiples are still left to it.

Everything that could go on for ever is limited, but for what a type leaves open itself: numbers have limited digits,
white space is at most one space, or one line feed and its indentation, at the places where people put it, and what
holds itself (`Any`, a model inside itself) is at most `NESTING` deep. Strings, lists and mappings without a length stay
open.

A value that cannot be (a bound above another, a list of at least one such value) has no rule: None, which its holder
passes on or does without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .lark import Rules, choice, literal, regex, repeated
from .messages import Where
from .numerals import FLOAT
from .scalars import CHARACTER, Node, integer, json_text, number, special

NESTING = 32
SPACE = " ?"
INDENT = r"( |\n[ \t]{0,24})?"
STRING = f'"{CHARACTER}*"'
QUOTE = regex('"')
# What an extra key may be made of: its letters without escapes, so that no declared key can be told in disguise.
PLAIN_KEY = r'"([^"\\\x00-\x1f]|\\["\\bfnrt])*"'
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
HOLDERS = ("anyOf", "oneOf")
NONE: frozenset[str] = frozenset()


class JsonRules(Rules):
    """The rules for one schema."""

    def __init__(self, schema: Node, *, one_line: bool) -> None:
        super().__init__()
        self._definitions: dict[str, Node] = schema.get("$defs", {})
        self._open = _recursive(self._definitions)
        self._done: dict[tuple[Any, ...], str | None] = {}
        space = SPACE if one_line else INDENT
        self._comma, self._colon = f"/,{space}/", f"/:{space}/"
        self._brackets = rf"/\[{space}/", rf"/{space}\]/"
        self._braces = rf"/\{{{space}/", rf"/{space}\}}/"

    def text(self, *expressions: str) -> str:
        """As in the base, each under a name, since one text's expression may stand in many places."""
        return self.terminal(regex(*expressions))

    def value(self, node: Node | bool, where: Where, level: int = 0, needed: frozenset[str] = NONE) -> str | None:
        """The rule of a schema's values. `level`: how deep it stands in itself; `needed`: keys that it must have."""
        if isinstance(node, bool):
            return self._any(level) if node else None
        if "$ref" in node:
            return self._reference(node["$ref"], where, level, needed)
        if "allOf" in node:
            if len(node["allOf"]) > 1:
                raise where.error("found allOf in the JSON schema, which a mask cannot hold", expected="one schema")
            return self.value(node["allOf"][0], where, level, needed)
        if "enum" in node or "const" in node:
            return self._labels(_labels_of(node))
        if "x-kind" in node:
            return special(node, self, json=True, where=where)
        for holder in HOLDERS:
            if holder in node:
                tag = node.get("discriminator", {}).get("propertyName")
                return self._either(node[holder], where, level, frozenset([tag]) if tag else NONE)
        if isinstance(node.get("type"), list):
            return self._either([{**node, "type": type_} for type_ in node["type"]], where, level, needed)
        return self._typed(node, where, level, needed) if "type" in node else self._any(level)

    def _typed(self, node: Node, where: Where, level: int, needed: frozenset[str]) -> str | None:
        """A schema with one `type`."""
        match node["type"]:
            case "null":
                return literal("null")
            case "boolean":
                return choice([literal("true"), literal("false")])
            case "integer":
                return integer(node, self, where)
            case "number":
                return number(node, self, where)
            case "string":
                return json_text(node, self, stripped=False, where=where)
            case "array":
                return self._array(node, where, level)
            case "object":
                return self._object(node, where, level, needed)
        raise where.error(f"found the JSON type {node['type']!r}", expected=", ".join(TYPES))

    def _labels(self, labels: list[Any]) -> str | None:
        """Finitely many values."""
        return choice([literal(json.dumps(label, ensure_ascii=False)) for label in labels]) if labels else None

    def _either(self, nodes: list[Node], where: Where, level: int, needed: frozenset[str]) -> str | None:
        """A value of one of several schemas."""
        found = (self.value(node, where, level, needed) for node in nodes)
        some = [option for option in found if option is not None]
        return choice(some) if some else None

    def _reference(self, reference: str, where: Where, level: int, needed: frozenset[str]) -> str | None:
        """A named schema, which has a rule of its own for every level at which it stands in itself."""
        name = _named(reference)
        level += name in self._open
        key = (name, level, needed)
        if level > NESTING:
            return None
        if key not in self._done:
            body = self.value(self._definitions[name], where, level, needed)
            self._done[key] = None if body is None else self.rule(body)
        return self._done[key]

    def _any(self, level: int) -> str:
        """Any JSON."""
        key = ("any", level)
        found = self._done.get(key)
        if found is None:
            scalars = [literal("null"), literal("true"), literal("false"), self.text(FLOAT), self.text(STRING)]
            if level < NESTING:
                inner = self._any(level + 1)
                member = f"{self.text(STRING)} {self._colon} {inner}"
                scalars += [self._held(self._brackets, self._items([], inner, 0, None) or "")]
                scalars += [self._held(self._braces, self._items([], member, 0, None) or "")]
            found = self._done[key] = self.rule(choice(scalars))
        return found

    def _held(self, ends: tuple[str, str], inside: str) -> str:
        return f"({ends[0]} {inside} {ends[1]})"

    def _array(self, node: Node, where: Where, level: int) -> str | None:
        """A list or a tuple. That a set's items differ is left to the reader."""
        first = [self.value(part, where.at(str(here)), level) for here, part in enumerate(node.get("prefixItems", ()))]
        item = (
            None if "prefixItems" in node and "items" not in node else self.value(node.get("items", True), where, level)
        )
        inside = self._items(first, item, node.get("minItems", 0), node.get("maxItems"))
        return None if inside is None else self.rule(self._held(self._brackets, inside))

    def _items(self, first: list[str | None], item: str | None, low: int, high: int | None) -> str | None:
        """What stands between brackets: the items in their places, then `item` again and again."""
        if high is not None and high < low:
            return None
        places = len(first)
        least, most = max(low - places, 0), None if high is None else max(high - places, 0)
        if item is None:
            if least:
                return None
            most = 0
        if not places:
            if most == 0 or item is None:
                return ""
            more = repeated(f"{self._comma} {item}", max(least - 1, 0), None if most is None else most - 1)
            return f"{item} {more}" if least else f"({item} {more})?"
        tail = repeated(f"{self._comma} {item}", least, most)
        for here in reversed(range(places)):
            part = first[here]
            if part is None or (high is not None and here >= high):
                if here < low:
                    return None
                tail = ""
                continue
            tail = f"{f'{self._comma} ' if here else ''}{part} {tail}"
            tail = tail if here < low else f"({tail})?"
        return tail

    def _object(self, node: Node, where: Where, level: int, needed: frozenset[str]) -> str | None:
        """An object: declared keys in their order, those without a default at least, then what else there may be."""
        declared: Mapping[str, Node] = node.get("properties", {})
        more = node.get("additionalProperties", "properties" not in node)
        if not declared:
            inside = self._mapping(node, more, where, level)
            return None if inside is None else self.rule(self._held(self._braces, inside))
        required = needed | set(node.get("required", ()))
        members: list[tuple[str, bool]] = []
        for name, part in declared.items():
            value = self.value(part, where.at(name), level)
            if value is not None:
                member = f"{literal(json.dumps(name, ensure_ascii=False))} {self._colon} {value}"
                members.append((self.rule(member), name in required))
            elif name in required:
                return None
        return self.rule(self._held(self._braces, self._members(members, self._extra(declared, more, where, level))))

    def _mapping(self, node: Node, more: Node | bool, where: Where, level: int) -> str | None:
        """The members of a mapping. That its keys differ is left to the reader, so a shortage may slip through."""
        value = self.value(more, where, level)
        key = self._key(node.get("propertyNames", {"type": "string"}), where)
        pair = None if value is None or key is None else f"{key} {self._colon} {value}"
        return self._items([], pair, node.get("minProperties", 0), node.get("maxProperties"))

    def _extra(self, declared: Mapping[str, Node], more: Node | bool, where: Where, level: int) -> str | None:
        """A member that is not declared, where there may be such."""
        value = self.value(more, where, level)
        if value is None:
            return None
        names = "|".join(_escaped(json.dumps(name, ensure_ascii=False)) for name in declared)
        others = f"{regex(PLAIN_KEY)} & ~{regex(f'({names})')}"
        return f"{self.terminal(others)} {self._colon} {value}"

    def _members(self, members: list[tuple[str, bool]], extra: str | None) -> str:
        """Members with commas between them, some of which may be left out; the first that stands has no comma."""
        after = f"({self._comma} {extra})*" if extra else ""
        starts = [f"{extra} {after}"] if extra else []
        whole = not any(required for _, required in members)  # with nothing before it, and nothing in it
        for member, required in reversed(members):
            starts = [f"{member} {after}"] + ([] if required else starts)
            after = self.rule(f"{self._comma} {member} {after}" if required else f"({self._comma} {member})? {after}")
        if not starts:
            return ""
        inside = choice([f"({start})" for start in starts])
        return f"{inside}?" if whole else inside

    def _key(self, node: Node, where: Where) -> str | None:
        """A mapping's key: a string, or the text of a number, a truth value, a date, in quotes."""
        if "$ref" in node:
            return self._key(self._definitions[_named(node["$ref"])], where)
        if "enum" in node or "const" in node:
            return self._labels([label for label in _labels_of(node) if isinstance(label, str)])
        for holder in HOLDERS:
            if holder in node:
                found = (self._key(part, where) for part in node[holder])
                some = [option for option in found if option is not None]
                return choice(some) if some else None
        if "x-kind" in node and node["x-kind"] != "decimal":
            return special(node, self, json=True, where=where)
        plain = {"integer": integer, "number": number}.get(node.get("type", ""))
        if plain or node.get("x-kind") == "decimal":
            inside = plain(node, self, where) if plain else special(node, self, json=False, where=where)
            return None if inside is None else f"({QUOTE} {inside} {QUOTE})"
        if node.get("type") == "boolean":
            return self._labels(["true", "false"])
        if node.get("type", "string") == "string":
            return json_text(node, self, stripped=False, where=where)
        raise where.error("found keys that JSON cannot hold", expected="keys that are text, numbers or labels")


def _labels_of(node: Node) -> list[Any]:
    return list(node["enum"]) if "enum" in node else [node["const"]]


def _named(reference: str) -> str:
    """The name that a reference to a definition holds (RFC 6901)."""
    return reference.removeprefix("#/$defs/").replace("~1", "/").replace("~0", "~")


def _escaped(text: str) -> str:
    """`text` as a regular expression that matches it alone."""
    return "".join(character if character.isalnum() else f"\\x{{{ord(character):x}}}" for character in text)


def _recursive(definitions: Mapping[str, Node]) -> frozenset[str]:
    """The named schemas that hold themselves, at whatever remove."""
    held = {name: _references(node) for name, node in definitions.items()}
    reached = {name: set(names) for name, names in held.items()}
    for _ in definitions:
        for names in reached.values():
            names |= {far for near in tuple(names) for far in held.get(near, ())}
    return frozenset(name for name, names in reached.items() if name in names)


def _references(node: Any) -> set[str]:
    if isinstance(node, list):
        return {name for part in node for name in _references(part)}
    if not isinstance(node, Mapping):
        return set()
    own = node.get("$ref")
    found = {_named(own)} if isinstance(own, str) else set()
    return found | {
        name for key, part in node.items() if key not in ("default", "enum", "const") for name in _references(part)
    }
