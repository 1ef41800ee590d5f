"""Reading text and writing files in one step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cuecard.errors import InputError, RunError
from cuecard.files import read_text, write_atomic


def test_writes_bytes_and_text_as_they_are(tmp_path: Path) -> None:
    write_atomic(tmp_path / "text", "é\r\n\n")
    write_atomic(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "text").read_bytes() == "é\r\n\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert sorted(os.listdir(tmp_path)) == ["bytes", "text"]


def test_replaces_and_keeps_the_mode_and_the_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_atomic(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "file"
    with pytest.raises(RunError) as raised:
        write_atomic(path, "x")
    assert str(raised.value) == f"{path}: cannot be written: No such file or directory"


def test_a_full_disk_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfa")
    assert read_text(tmp_path / "file") == "a"


def test_reading_tells_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b"one\ntwo \xff\n")
    (tmp_path / "folder").mkdir()

    def message(name: str, limit: int | None = None) -> str:
        with pytest.raises(InputError) as raised:
            read_text(tmp_path / name, limit)
        return str(raised.value).replace(str(tmp_path), "")

    assert message("trian.jsonl") == "/trian.jsonl: no such file (did you mean '/train.jsonl'?)"
    assert message("folder") == "/folder: this is a folder; expected a file"
    assert message("train.jsonl", 3) == "/train.jsonl: the file has 10 bytes; expected at most 3"
    assert message("train.jsonl") == "/train.jsonl:2: the byte 0xFF is not UTF-8\n  Save the file as UTF-8."
