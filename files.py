"""Reading a text file with errors that a user understands, and writing one so that nobody ever sees half of it.

A written file's bytes go to a temporary file in the same folder, which then takes the name in one step (`os.replace`,
atomic on one file system). A process that is killed leaves at most a stray hidden `.NAME.*.tmp` behind.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from uuid import uuid4

from .errors import InputError, RunError, nearest


def read_bytes(path: str | os.PathLike[str], max_bytes: int | None = None) -> bytes:
    """The content of a file.

    Raises `InputError` when the file is missing (with the nearest name in its folder), is a folder, cannot be opened,
    or is larger than `max_bytes`.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        if max_bytes is not None and size > max_bytes:
            raise InputError(f"the file has {size:,} bytes", path=path, expected=f"at most {max_bytes:,}")
        return file.read_bytes()
    except FileNotFoundError:
        raise InputError("no such file", path=path, nearest=nearest_file(file)) from None
    except IsADirectoryError:
        raise InputError("this is a folder", path=path, expected="a file") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", path=path) from error


def read_text(path: str | os.PathLike[str], max_bytes: int | None = None) -> str:
    """The text of a UTF-8 file (a byte order mark is dropped, line ends stay as they are).

    Raises `InputError` like `read_bytes`, and with the line where the file is not UTF-8.
    """
    content = read_bytes(path, max_bytes)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `error.start` counts after the byte order mark, if there was one; that is on the first line.
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"the byte 0x{error.object[error.start]:02X} is not UTF-8"
        raise InputError(message, path=path, line=line, hint="Save the file as UTF-8.") from None


def write_atomic(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Write `data` (text as UTF-8, line ends untouched) to `path`, replacing what was there.

    A symbolic link keeps its place and its target is replaced. Raises `RunError`, which names the file, when the folder
    is missing, the disk is full or the permission is lacking; the old content then stands.
    """
    content = data.encode("utf-8") if isinstance(data, str) else data
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o777)
        os.replace(temporary, target)
    except OSError as error:
        raise RunError(f"cannot be written: {error.strerror or error}", path=path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def nearest_file(path: str | os.PathLike[str]) -> str | None:
    """What may have been meant by `path`, which is not there: the same name with another ending, or a similar name.

    It is a path written like `path`; None when nothing in its folder is near.
    """
    file = Path(path)
    try:
        names = sorted(entry.name for entry in file.parent.iterdir())
    except OSError:
        return None
    same = [name for name in names if Path(name).stem == file.stem]
    stems = {Path(name).stem: name for name in names if Path(name).suffix == file.suffix}
    near = nearest(file.stem, stems)
    found = same[0] if same else None if near is None else stems[near]
    return None if found is None else str(file.with_name(found))
