r"""From a pattern that is searched for to an expression that a whole text has to match.

Pydantic searches: `[0-9]` holds for `a1b`, and only `^` and `$` tie a pattern to the text's ends. A token mask matches
whole texts and knows no anchors. So the pattern is taken apart, as far as its anchors need it: `^(a|b$)` becomes
`a.*|b`. Its dialect is that of Rust's regex crate, which both pydantic and llguidance read
(https://docs.rs/regex/latest/regex/#syntax); `\d`, `\w` and `\s` are written out, since llguidance reads them as ASCII
in JSON strings. What a mask cannot hold is refused by its name: look-arounds, word boundaries, back-references, anchors
in the middle.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

ANY = "(?s:.*)"
WORD = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}"
CLASSES = {
    "d": r"\p{Nd}",
    "D": r"\P{Nd}",
    "s": r"\p{White_Space}",
    "S": r"\P{White_Space}",
    "w": f"[{WORD}]",
    "W": f"[^{WORD}]",
}
CONTROLS = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
QUANTIFIER = re.compile(r"(?:[*+?]|\{[0-9]+(?:,[0-9]*)?\}|\{,[0-9]+\})(?P<lazy>[?+]?)")
ESCAPE = re.compile(
    r"\\(?:[pP](?:\{[^}]*\}|.)|x(?:\{[^}]*\}|[0-9A-Fa-f]{2})|u(?:\{[^}]*\}|[0-9A-Fa-f]{4})|U(?:\{[^}]*\}|[0-9A-Fa-f]{8})|.)",
    re.DOTALL,
)
OPENING = re.compile(r"\((?:\?(?:P?<(?P<name>[^>=!]+)>|(?P<flags>[a-zA-Z-]*)(?P<end>[:)])|(?P<other><?[=!]|P[=>]|.)))?")
MOST_BRANCHES = 64


class Unsupported(ValueError):
    """What a pattern holds that a mask cannot: its message names the construct."""


@dataclass(frozen=True)
class Branch:
    """One alternative: whether it is tied to the text's start, what stands there, whether it is tied to the end."""

    start: bool = False
    body: str = ""
    end: bool = False

    def then(self, other: Branch) -> Branch:
        """This one and `other` behind it."""
        if (other.start and self.body) or (self.end and other.body):
            raise Unsupported("an anchor in the middle")
        return Branch(self.start or other.start, self.body + other.body, self.end or other.end)


def whole_text(pattern: str) -> str:
    r"""The expression that matches exactly the texts in which `pattern` is found. Raises Unsupported.

    >>> whole_text("^[0-9]{3}$"), whole_text("cat|^dog")
    ('[0-9]{3}', '(?s:.*)cat(?s:.*)|dog(?s:.*)')
    """
    branches = _Parser(pattern).parse()
    return "|".join(f"{'' if b.start else ANY}{b.body}{'' if b.end else ANY}" for b in branches)


class _Parser:
    """Reads a pattern from left to right. Braces and brackets are balanced, since pydantic compiled it."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.here = 0

    def parse(self) -> list[Branch]:
        """The whole pattern's alternatives."""
        branches = self.alternatives("")
        if self.here < len(self.pattern):
            raise Unsupported("a closing parenthesis without an opening one")
        return branches

    def alternatives(self, flags: str) -> list[Branch]:
        """The alternatives up to the end of the group."""
        done: list[Branch] = []
        open_ = [Branch()]
        while self.here < len(self.pattern) and self.pattern[self.here] != ")":
            character = self.pattern[self.here]
            if character == "|":
                self.here += 1
                done, open_ = done + open_, [Branch()]
            elif character == "(":
                group, flags = self.group(flags)
                open_ = [branch.then(part) for branch in open_ for part in group]
            else:
                item = self.item(flags)
                open_ = [branch.then(item) for branch in open_]
            if len(done) + len(open_) > MOST_BRANCHES:
                raise Unsupported("anchors in too many alternatives")
        return done + open_

    def group(self, flags: str) -> tuple[list[Branch], str]:
        """A group in parentheses, or flags for what follows: its branches, and the flags from here on."""
        opening = OPENING.match(self.pattern, self.here)
        if opening is None or opening["other"]:
            raise Unsupported(_opening(opening[0] if opening else "("))
        self.here = opening.end()
        given = _flags(opening["flags"]) if opening["flags"] else ""
        if opening["end"] == ")":
            return [Branch()], given or flags
        branches = self.alternatives(given or flags)
        if self.here == len(self.pattern):
            raise Unsupported("a parenthesis that is never closed")
        self.here += 1
        if not any(branch.start or branch.end for branch in branches):
            body = "|".join(branch.body for branch in branches)
            return [Branch(body=self.repeated(f"(?:{body})"))], flags
        if self.quantifier():
            raise Unsupported("an anchor in a repeated group")
        return [replace(branch, body=branch.body and f"(?:{branch.body})") for branch in branches], flags

    def item(self, flags: str) -> Branch:
        """One character, class or anchor, with how often it stands there."""
        character = self.pattern[self.here]
        if character in "^$":
            self.here += 1
            return self.anchor(character == "^")
        if character == "[":
            atom = self.bracket()
        elif character == "\\":
            escape = self.escape()
            if escape in (r"\A", r"\z", r"\Z"):
                return self.anchor(escape == r"\A")
            atom = _class(escape)
        else:
            self.here += 1
            atom = CONTROLS.get(character, rf"\{character}" if character in "{}]" else character)
        atom = f"(?{flags}:{atom})" if flags else atom
        return Branch(body=self.repeated(atom))

    def anchor(self, start: bool) -> Branch:
        """The text's start or its end."""
        if self.quantifier():
            raise Unsupported("a repeated anchor")
        return Branch(start=start, end=not start)

    def repeated(self, atom: str) -> str:
        """`atom` as often as it stands there; what is repeated may be repeated again."""
        often = self.quantifier()
        while often:
            atom, often = atom + often, self.quantifier()
            atom = f"(?:{atom})" if often else atom
        return atom

    def quantifier(self) -> str:
        """How often the last item stands there; whether few or many are preferred makes no difference to a mask."""
        found = QUANTIFIER.match(self.pattern, self.here)
        if found is None:
            return ""
        if found["lazy"] == "+":
            raise Unsupported("a possessive repetition")
        self.here = found.end()
        often = found[0].removesuffix("?") if found["lazy"] else found[0]
        return often.replace("{,", "{0,")

    def escape(self) -> str:
        """A backslash and what belongs to it."""
        found = ESCAPE.match(self.pattern, self.here)
        if found is None:
            raise Unsupported("a backslash at the end")
        if found[0][1] in "bB<>":
            raise Unsupported(f"a word boundary ({found[0]})")
        if found[0][1].isdigit():
            raise Unsupported(f"a back-reference ({found[0]})")
        self.here = found.end()
        return found[0]

    def bracket(self) -> str:
        """A class in brackets, classes inside it included."""
        written = "["
        self.here += 1
        for sign in "^]":  # a bracket that closes nothing yet is a character
            if self.pattern.startswith(sign, self.here):
                written += sign if sign == "^" else r"\]"
                self.here += 1
        while self.here < len(self.pattern) and self.pattern[self.here] != "]":
            character = self.pattern[self.here]
            if self.pattern.startswith("[:", self.here):
                end = self.pattern.index(":]", self.here) + 2
                written += self.pattern[self.here : end]
                self.here = end
            elif character == "[":
                written += self.bracket()
            elif character == "\\":
                written += _class(self.escape())
            else:
                written += CONTROLS.get(character, character)
                self.here += 1
        self.here += 1
        return f"{written}]"


def _class(escape: str) -> str:
    """An escape; `\\d` and its kin written out."""
    return CLASSES.get(escape[1:], escape if escape[1] != "\n" else r"\n")


def _flags(flags: str) -> str:
    """Flags that a mask can hold."""
    if set(flags) - set("isuU-") or re.search("-.*u", flags):
        raise Unsupported(f"the flag (?{flags})")
    on, _, off = re.sub("[uU]", "", flags).partition("-")  # Unicode is the default, and laziness makes no difference
    return on + (f"-{off}" if off else "")


def _opening(found: str) -> str:
    """What a group's opening is called."""
    if found.startswith(("(?=", "(?!", "(?<=", "(?<!", "(?<")):
        return f"a look-around ({found})"
    return f"a back-reference ({found})" if found.startswith("(?P=") else f"a group that opens with {found}"
