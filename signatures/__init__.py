"""Typed signatures: made from text, read from and written as text, turned into grammars and choices."""

from .describe import describe
from .dumping import dump
from .grammar import grammar, text_terminal
from .labels import choice_value, choices
from .reader import read
from .rows import check_value
from .schema import json_schema
from .signature import field_types, signature
from .types import type_name
from .writer import write

__all__ = [
    "check_value",
    "choice_value",
    "choices",
    "describe",
    "dump",
    "field_types",
    "grammar",
    "json_schema",
    "read",
    "signature",
    "text_terminal",
    "type_name",
    "write",
]
