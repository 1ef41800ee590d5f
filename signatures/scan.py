"""Splitting text at separators that stand outside quotes and brackets."""

from __future__ import annotations

from collections.abc import Iterator

from .messages import Where, clip

CLOSES = {")": "(", "]": "[", "}": "{"}
OPENS = {opening: closing for closing, opening in CLOSES.items()}


def outside(text: str, where: Where) -> Iterator[int]:
    """The positions of `text` that lie outside quotes and brackets.

    Raises InputError for a quote or bracket without its partner.
    """
    open_brackets: list[str] = []
    quote = ""
    escaped = False
    for position, character in enumerate(text):
        if quote:
            if escaped or character == "\\":
                escaped = not escaped
            elif character == quote:
                quote = ""
        elif character in "'\"":
            quote = character
        elif character in OPENS:
            open_brackets.append(character)
        elif character in CLOSES:
            if not open_brackets or open_brackets.pop() != CLOSES[character]:
                raise where.error(f"found {character!r} without {CLOSES[character]!r} before it in {clip(text)}")
        elif not open_brackets:
            yield position
    if quote:
        raise where.error(f"found a quote that is never closed in {clip(text)}", expected=f"another {quote}")
    if open_brackets:
        found = open_brackets[-1]
        raise where.error(f"found {found!r} that is never closed in {clip(text)}", expected=f"{OPENS[found]!r}")


def check_balance(text: str, where: Where) -> None:
    """Refuse unbalanced quotes and brackets, and a comment sign."""
    if any(text[position] == "#" for position in outside(text, where)):
        raise where.error(f"found '#' in {clip(text)}", expected="a type expression without comments")


def split(text: str, separator: str, where: Where) -> list[str]:
    """`text` cut at every `separator` that stands outside quotes and brackets."""
    pieces, start = [], 0
    for position in outside(text, where):
        if position >= start and text.startswith(separator, position):
            pieces.append(text[start:position])
            start = position + len(separator)
    return [*pieces, text[start:]]
