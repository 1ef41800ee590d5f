"""How the results of tests are told to other programs and to people: each format makes a text from a `Report`.

The same report is the same text: nothing is read but the report, no clock and no machine. All of them are made for
outputs that nobody has vetted: what a model wrote is escaped, and can neither break a file nor act in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from .data import as_json, as_jsonl, report_data
from .junit import as_junit
from .markdown import as_markdown
from .page import as_html

if TYPE_CHECKING:
    from ..testing.results import Report

FORMATS: Mapping[str, Callable[[Report], str]] = MappingProxyType(
    {"junit": as_junit, "markdown": as_markdown, "html": as_html, "jsonl": as_jsonl, "json": as_json}
)

__all__ = ["FORMATS", "as_html", "as_json", "as_jsonl", "as_junit", "as_markdown", "report_data"]
