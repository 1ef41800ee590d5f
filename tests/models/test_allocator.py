"""The C library's allocator: it is told what to keep, or left alone."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import pytest

from cuecard.models import allocator


class Library:
    def __init__(self) -> None:
        self.told: dict[int, int] = {}

    def mallopt(self, parameter: int, value: int) -> int:
        self.told[parameter] = value
        return 1


@pytest.mark.parametrize(("library", "told"), [("glibc", {-1: 1 << 30, -2: 64 << 20, -3: 32 << 20}), ("", {})])
def test_only_glibc_is_told(library: str, told: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    there = Library()
    monkeypatch.setattr(platform, "libc_ver", lambda *_: (library, "1"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: there)
    allocator.keep_memory()
    assert there.told == told


def test_it_takes_what_it_is_told() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library")
    answers: list[Any] = []
    real = ctypes.CDLL(None).mallopt
    for parameter, value in ((allocator.MMAP_THRESHOLD, allocator.BLOCK), (allocator.TOP_PAD, allocator.STEP)):
        answers.append(real(parameter, value))
    assert answers == [1, 1], "1 says that it was taken; a larger block is refused"
