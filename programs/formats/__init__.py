"""Formats: how a predictor's instruction, demos and inputs are laid out as text, and how its outputs are read back."""

from .base import Format, Head
from .registry import format_choice, format_named, names

__all__ = ["Format", "Head", "format_choice", "format_named", "names"]
