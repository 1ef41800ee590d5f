r"""From our Lark (llguidance's) to GBNF, the grammar language of llama.cpp and, by the name of EBNF, of XGrammar.

https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md,
https://xgrammar.mlc.ai/docs/tutorials/ebnf_grammar.html.

Converted are rules of literals, regexes (characters, classes, groups, alternatives, repetition), references,
repetition and nested grammars (`%lark {}`), and text up to its first suffix, for which a right-linear grammar is made
from the suffix's failure function (Knuth, Morris & Pratt 1977, "Fast Pattern Matching in Strings"). Everything else is
refused: JSON schemas, flags, special tokens, other attributes, terminals with `&` and `~`. Refusals are `InputError`s.

One thing is said differently. A lexeme of Lark takes all the characters that it can, where GBNF tries every division:
`/[a-z]+/ "b"` accepts nothing there, and `ab` here. Grammars whose lexemes can't go on with what follows them, as all
of this project's, mean the same in both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...errors import InputError

_TOKEN = re.compile(
    r"""(?P<space>[ \t]+|//[^\n]*) | (?P<line>\n) | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<regex>/(?:[^/\\\n]|\\.)+/) | (?P<name>[A-Za-z_]\w*) | (?P<repeat>\{\d+(?:,\d*)?\})
      | (?P<nested>%lark[ ]*\{) | (?P<mark>[:|()?*+\[\]=}])""",
    re.VERBOSE,
)
_REPEAT = re.compile(r"\{\d+(?:,\d*)?\}")
_ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "\\": r"\\"}
_CHARACTERS = {"n": "\n", "r": "\r", "t": "\t"}
# No text of a model holds the null character, which stands here for "no character".
ANY = r"[^\x00]"
TEXT, MAYBE_TEXT = ("(?s:.+)", "(?s:.)+"), ("(?s:.*)", "(?s:.)*")
_CODE = re.compile(r"x(?:([0-9a-fA-F]{2})|\{([0-9a-fA-F]{1,6})\})")


def convert(lark: str) -> str:
    r"""The grammar `lark` in GBNF, its start rule called `root`. Raises `InputError` for what GBNF has no words for.

    >>> convert('start: "yes" | /[0-9]{1,2}/')
    'root ::= "yes" | [0-9]{1,2}\n'
    """
    return str(_Converter(list(_tokens(lark))))


def literal(text: str) -> str:
    """`text` as a GBNF string."""
    return '"' + "".join(_ESCAPES.get(c) or (f"\\x{ord(c):02X}" if ord(c) < 32 else c) for c in text) + '"'


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str


def _tokens(lark: str) -> Iterator[_Token]:
    place = 0
    while place < len(lark):
        match = _TOKEN.match(lark, place)
        if match is None or match.lastgroup is None:
            raise _unsaid(lark[place : place + 30].partition("\n")[0])
        place = match.end()
        glued = lark[place : place + 1]
        if match.lastgroup in ("string", "regex") and (glued.isalnum() or glued == "."):
            raise _unsaid(f"{match[0]}{glued}")
        if match.lastgroup != "space":
            yield _Token(match.lastgroup, match[0])
    yield _Token("line", "\n")


def _unsaid(what: str) -> InputError:
    return InputError(f"GBNF has no words for {what!r}", field="grammar")


@dataclass
class _Converter:
    """A recursive descent over the tokens of a Lark grammar."""

    tokens: list[_Token]
    place: int = 0
    rules: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=lambda: {"start": "root"})
    count: int = 0

    def __str__(self) -> str:
        self._grammar("end")
        ordered = sorted(self.rules, key=lambda name: name != "root")
        return "".join(f"{name} ::= {self.rules[name]}\n" for name in ordered)

    def _grammar(self, end: str) -> None:
        """The rules up to what ends them, each of which must be there."""
        while self._next.kind != end and (self._next.kind, self._next.text) != ("mark", end):
            if not self._take("line"):
                self._rule()
        missing = sorted(name for name, ours in self.names.items() if ours not in self.rules)
        if missing:
            raise InputError(f"the grammar has no rule {missing[0]!r}", field="grammar")

    @property
    def _next(self) -> _Token:
        return self.tokens[self.place] if self.place < len(self.tokens) else _Token("end", "")

    def _take(self, kind: str, text: str | None = None) -> str | None:
        token = self._next
        if token.kind != kind or (text is not None and token.text != text):
            return None
        self.place += 1
        return token.text

    def _need(self, kind: str, text: str | None = None) -> str:
        found = self._take(kind, text)
        if found is None:
            raise _unsaid(self._next.text)
        return found

    def _named(self, name: str) -> str:
        if name not in self.names:
            self.count += 1
            self.names[name] = f"r{self.count}"
        return self.names[name]

    def _nested(self) -> str:
        """The start rule of a grammar inside the grammar, which has names of its own."""
        outside, self.names = self.names, {}
        start = self._named("start")
        self._grammar("}")
        self._need("mark", "}")
        self.names = outside
        return start

    def _rule(self) -> None:
        name = self._named(self._need("name"))
        suffix = None
        if self._take("mark", "["):
            self._need("name", "suffix")
            self._need("mark", "=")
            suffix = json.loads(self._need("string"))
            self._need("mark", "]")
        self._need("mark", ":")
        if suffix is None:
            self.rules[name] = self._alternatives()
        else:
            self._until(name, self._need("regex")[1:-1], suffix)
        self._need("line")

    def _alternatives(self) -> str:
        found = [self._sequence()]
        while self._bar():
            found.append(self._sequence())
        return " | ".join(found)

    def _bar(self) -> bool:
        """Whether another alternative follows, on this line or the next."""
        ahead = self.place
        while ahead < len(self.tokens) and self.tokens[ahead].kind == "line":
            ahead += 1
        if ahead < len(self.tokens) and self.tokens[ahead] == _Token("mark", "|"):
            self.place = ahead + 1
            return True
        return False

    def _sequence(self) -> str:
        parts = []
        while (part := self._part()) is not None:
            again = self._take("repeat")
            if again is None and self._next.kind == "mark" and self._next.text in "?*+":
                again = self._need("mark")
            parts.append(f"{part}{again}" if again else part)
        return " ".join(parts) or '""'

    def _part(self) -> str | None:
        if (text := self._take("string")) is not None:
            return literal(json.loads(text))
        if (text := self._take("regex")) is not None:
            return _grouped(_Regex(text[1:-1].replace("\\/", "/")).whole())
        if (text := self._take("name")) is not None:
            return self._named(text)
        if self._take("nested"):
            return self._nested()
        if self._take("mark", "("):
            inside = self._alternatives()
            self._need("mark", ")")
            return f"({inside})"
        return None

    def _until(self, name: str, regex: str, suffix: str) -> None:
        """The rules of any text, at least one character of it for `TEXT`, up to the first `suffix`."""
        if regex not in TEXT + MAYBE_TEXT:
            raise _unsaid(f"/{regex}/ up to {suffix!r}")
        states = [f"{name}s{state}" for state in range(len(suffix))]
        # What stands before the suffix takes its first character whatever it is, so no suffix starts there.
        self.rules[name] = f"{ANY} {states[0]}" if regex in TEXT else states[0]
        letters = "".join(dict.fromkeys(suffix))
        for state, rule in enumerate(states):
            ways = [f"[^\\x00{''.join(map(_in_class, letters))}] {states[0]}"]
            for letter in letters:
                after = _after(suffix, state, letter)
                ways.append(f"{literal(letter)}{'' if after == len(suffix) else f' {states[after]}'}")
            self.rules[rule] = " | ".join(ways)


def _after(suffix: str, matched: int, letter: str) -> int:
    """How much of `suffix` is matched when `letter` follows its first `matched` characters."""
    seen = suffix[:matched] + letter
    return next(size for size in range(len(seen), -1, -1) if seen.endswith(suffix[:size]))


def _in_class(character: str) -> str:
    return f"\\x{ord(character):02X}" if ord(character) < 128 and not character.isalnum() else character


def _grouped(expression: str) -> str:
    return f"({expression})" if re.search(r"[ |]", re.sub(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]', "", expression)) \
        else expression  # fmt: skip


@dataclass
class _Regex:
    """A recursive descent over a regular expression. Characters side by side become one string."""

    source: str
    place: int = 0
    dot_all: bool = False

    def whole(self) -> str:
        """The expression of the whole regex."""
        expression = self._alternatives()
        if self.place < len(self.source):
            raise _unsaid(f"/{self.source}/")
        return expression

    def _alternatives(self) -> str:
        found = [self._sequence()]
        while self._take("|"):
            found.append(self._sequence())
        return " | ".join(found)

    def _take(self, text: str) -> bool:
        if not self.source.startswith(text, self.place):
            return False
        self.place += len(text)
        return True

    def _sequence(self) -> str:
        parts: list[str] = []
        plain = ""
        while self.place < len(self.source) and self.source[self.place] not in "|)":
            character, part = self._atom()
            again = self._again()
            if character is not None and not again:
                plain += character
                continue
            if plain:
                parts.append(literal(plain))
                plain = ""
            parts.append((literal(character) if character is not None else part) + again)
        return " ".join([*parts, *([literal(plain)] if plain else [])]) or '""'

    def _again(self) -> str:
        found = _REPEAT.match(self.source, self.place)
        again = found[0] if found else next((mark for mark in "?*+" if self._take(mark)), "")
        self.place += len(again) if found else 0
        if again and (self.source[self.place : self.place + 1] or " ") in "?*+{":
            raise _unsaid(f"/{self.source}/")
        return again

    def _atom(self) -> tuple[str | None, str]:
        """One character, or the expression of something else."""
        if self._take("("):
            return None, self._group()
        if self._take("["):
            return None, self._class()
        if self._take("."):
            return None, ANY if self.dot_all else r"[^\n]"
        if self.source[self.place] in "?*+{}^$":
            raise _unsaid(f"/{self.source}/")
        return self._character(), ""

    def _group(self) -> str:
        outside = self.dot_all
        if self._take("?s:"):
            self.dot_all = True
        elif self.source.startswith("?", self.place) and not self._take("?:"):
            raise _unsaid(f"/{self.source}/")
        expression = self._alternatives()
        self.dot_all = outside
        if not self._take(")"):
            raise _unsaid(f"/{self.source}/")
        return f"({expression})"

    def _class(self) -> str:
        found = "[^" if self._take("^") else "["
        while not self._take("]"):
            if self.place >= len(self.source) or self.source[self.place] == "[":
                raise _unsaid(f"/{self.source}/")
            found += _in_class(self._character())
            following = self.source[self.place + 1 : self.place + 2]
            if following not in ("", "]") and self._take("-"):
                found += "-" + _in_class(self._character())
        return found + "]"

    def _character(self) -> str:
        character = self.source[self.place]
        self.place += 1
        if character != "\\":
            return character
        code = _CODE.match(self.source, self.place)
        if code is not None:
            self.place = code.end()
            return chr(int(code[1] or code[2], 16))
        escaped = self.source[self.place : self.place + 1]
        self.place += 1
        if not escaped or (escaped.isalnum() and escaped not in _CHARACTERS):
            raise _unsaid(f"\\{escaped}")
        return _CHARACTERS.get(escaped, escaped)
