"""Telling a model server's address from a model's name, path or hub id, without importing anything heavy."""

from __future__ import annotations

import re
from os import PathLike

_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_USER = re.compile(r"(?<=//)[^/@]*@")


def is_address(reference: str | PathLike[str]) -> bool:
    """Whether `reference` is an address, `http://localhost:8000`.

    >>> is_address("https://host/v1"), is_address("org/name"), is_address("localhost:8000")
    (True, False, False)
    """
    return isinstance(reference, str) and _SCHEME.match(reference) is not None


def shown(address: str) -> str:
    """`address` for people: without a name and a password in it."""
    return _USER.sub("", address, count=1)
