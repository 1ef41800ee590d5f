"""A model's identity changes with whatever changes its outputs, and with nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cuecard.errors import InputError
from cuecard.models import identity as module
from cuecard.models.identity import file_sha256, identity

pytestmark = pytest.mark.usefixtures("cuecard_home")

TARGET = {"dtype": "float32", "device_kind": "cpu", "engine_version": "1"}


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_it_is_sixteen_bytes_in_hexadecimal_and_stays(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    found = identity(folder, **TARGET)
    assert len(bytes.fromhex(found)) == 16
    assert identity(str(folder), **TARGET) == found
    assert identity(tiny_model, **TARGET, cache=tmp_path / "another cache") == found


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"device_kind": "cuda"}, {"engine_version": "2"}])
def test_it_changes_with_the_target(change: dict[str, str], tiny_model: Path) -> None:
    assert identity(tiny_model, **{**TARGET, **change}) != identity(tiny_model, **TARGET)


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def set_value(name: str, key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, key: value}))

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: flip_last_byte(folder / "model.safetensors"),
        lambda folder: flip_last_byte(folder / "tokenizer.json"),
        lambda folder: flip_last_byte(folder / "chat_template.jinja"),
        lambda folder: (folder / "chat_template.jinja").unlink(),
        lambda folder: (folder / "vocab.json").write_text("{}"),
        lambda folder: (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors"),
        set_value("config.json", "rms_norm_eps", 1e-5),
        set_value("generation_config.json", "eos_token_id", 2),
        set_value("tokenizer_config.json", "add_bos_token", True),
    ],
)
def test_it_changes_with_the_files(change: Callable[[Path], object], folder: Path) -> None:
    before = identity(folder, **TARGET)
    change(folder)
    assert identity(folder, **TARGET) != before


@pytest.mark.parametrize(
    "change",
    [
        set_value("config.json", "transformers_version", "0.0"),
        set_value("config.json", "_name_or_path", "/somewhere"),
        lambda folder: (folder / "config.json").write_text(
            json.dumps(json.loads((folder / "config.json").read_text()), indent=7)
        ),
        lambda folder: os.utime(folder / "model.safetensors", (1, 1)),
        lambda folder: (folder / "README.md").write_text("about"),
        lambda folder: (folder / "source.json").write_text("{}"),
    ],
)
def test_it_stays_with_what_does_not_matter(change: Callable[[Path], object], folder: Path) -> None:
    before = identity(folder, **TARGET)
    change(folder)
    assert identity(folder, **TARGET) == before


def test_files_are_hashed_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(tiny_model, **TARGET)

    def again(path: Path) -> str:
        raise AssertionError(f"{path} is hashed again")

    monkeypatch.setattr(module, "sha256", again)
    assert identity(tiny_model, **TARGET) == before


def test_a_file_of_the_same_size_and_date_is_another_file(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    for path, text in ((file, "one"), (other, "two")):
        path.write_text(text)
        os.utime(path, ns=(10**18, 10**18))
    before = file_sha256(file)
    other.replace(file)
    assert file_sha256(file) == module.sha256(file) != before


@pytest.mark.parametrize("spoilt", ["", "[]", '{"stamp": null}', "\x00"])
def test_a_spoilt_cache_is_not_believed(spoilt: str, tmp_path: Path, cuecard_home: Path) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    right = file_sha256(file)
    (note,) = (cuecard_home / "hashes").iterdir()
    note.write_text(spoilt)
    assert file_sha256(file) == right
    assert json.loads(note.read_text())["sha256"] == right


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    assert file_sha256(file, cache=file) == module.sha256(file)


def test_a_folder_without_weights_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"there are no weights; expected \*.safetensors files"):
        identity(tmp_path, **TARGET)
