"""Where processes keep a study that they share: an Optuna storage, by its URL.

Three kinds: a SQLite file (`sqlite:///study.db`), any other database that SQLAlchemy has a driver for
(`postgresql://user@host/name`), and a journal file (`journal:study.journal`, or a path that ends in `.journal`), which
needs no database and works where a file system's locks do not. Optuna keeps JSON in all of them: what is read is data,
and nothing is unpickled (its journal unpickles snapshots, which a file has none of).

What a storage raises is told as an error of ours. Two processes that make the tables of an empty database at the same
moment get in each other's way once; the one that lost looks again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import CuecardError, InputError, RunError

if TYPE_CHECKING:
    import optuna

SCHEME = "journal:"
ENDING = ".journal"
EXPECTED = "sqlite:///FILE.db, postgresql://USER@HOST/NAME, or a journal file, journal:FILE or FILE.journal"
PATIENCE = 30.0  # seconds to wait for a SQLite file that another process is writing to
OPENINGS = 6  # tries, where another process is making the same tables
AT_ONCE = re.compile(r"already exists|duplicate|unique|version_num", re.I)
PASSWORD = re.compile(r"(//[^:/@]*):[^@/]*@")
DRIVERS: Mapping[str, str] = MappingProxyType(
    {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
)


@dataclass(frozen=True)
class Address:
    """Where a study is. text: as it was given; shown: without a password; path: the file of a SQLite database or of a
    journal, None for a server's database.
    """

    text: str
    shown: str
    path: Path | None
    journal: bool

    def hidden(self, reason: str) -> str:
        """`reason` without the password that a driver may have put into it."""
        found = PASSWORD.search(self.text)
        secret = found[0].partition(":")[2][:-1] if found else ""
        return reason.replace(secret, "***") if secret else reason


def address_of(text: str) -> Address:
    """The address that a URL, or the path of a journal file, names. Raises `InputError`."""
    if text.startswith(SCHEME) or (text.endswith(ENDING) and "://" not in text):
        name = text.removeprefix(SCHEME)
        name = name[2:] if name.startswith("//") else name
        if not name:
            raise InputError("the journal file has no name", field="study", expected=EXPECTED)
        return Address(text, text, Path(name), journal=True)
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        found = PASSWORD.sub(r"\1:***@", text)
        raise InputError(f"found {found!r}, which is no URL of a study", field="study", expected=EXPECTED) from error
    query = {name: value for name, value in url.query.items() if "pass" not in name.lower()}
    shown = url.set(query=query).render_as_string(hide_password=True)
    if url.get_backend_name() != "sqlite":
        return Address(text, shown, None, journal=False)
    if url.database in (None, "", ":memory:") or "mode=memory" in text:
        raise InputError(
            "a database in memory can't be shared", field="study", expected="sqlite:///FILE.db, a file's path"
        )
    path = None if str(url.database).startswith("file:") else Path(str(url.database))
    return Address(text, shown, path, journal=False)


def open_storage(address: Address) -> optuna.storages.BaseStorage:
    """The storage at an address, made where there is none yet. Raises `InputError` for an address that can't be one,
    `RunError` where it can't be reached.
    """
    path = address.path
    if path is not None and not path.absolute().parent.is_dir():
        hint = "Make the folder first, or name another file."
        raise InputError(f"there is no folder {str(path.parent)!r} for the study", field="study", hint=hint)
    if path is not None and path.is_dir():
        raise InputError(f"{str(path)!r} is a folder", field="study", expected=EXPECTED)
    with telling(address, opening=True):
        return _journal(path) if address.journal and path is not None else _database(address)


def _journal(path: Path) -> optuna.storages.BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    name = os.path.abspath(path)
    if path.exists():
        with path.open("rb") as file:
            first = file.readline()
        if first and "op_code" not in dict(json.loads(first)):  # Optuna takes it for one that was cut short
            raise ValueError("its first line is none of a journal")
    return JournalStorage(JournalFileBackend(name, JournalFileOpenLock(name)))


def _database(address: Address) -> optuna.storages.BaseStorage:
    from optuna.exceptions import OptunaError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    sqlite = address.text.startswith("sqlite")
    options: dict[str, Any] = {"connect_args": {"timeout": PATIENCE}} if sqlite else {"pool_pre_ping": True}
    for left in reversed(range(OPENINGS)):
        try:
            return RDBStorage(address.text, engine_kwargs=options)
        except (SQLAlchemyError, OptunaError, AssertionError) as error:
            if not left or not (isinstance(error, AssertionError) or AT_ONCE.search(str(error.__cause__ or error))):
                raise
        time.sleep(0.2)
    raise AssertionError("the last try returns or raises")


def close_storage(storage: optuna.storages.BaseStorage) -> None:
    """Close a storage's connections."""
    engine = getattr(storage, "engine", None)
    if engine is not None:
        engine.dispose()


@contextlib.contextmanager
def telling(address: Address, *, opening: bool = False) -> Iterator[None]:
    """Tell what the storage at an address raises as an `InputError` or a `RunError`: a study is somebody else's data,
    and what Optuna raises when it can't read one is of any kind.
    """
    try:
        yield
    except CuecardError:
        raise
    except Exception as error:
        raise _told(address, error, opening) from error


def _told(address: Address, error: Exception, opening: bool) -> CuecardError:
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

    cause = error if isinstance(error, SQLAlchemyError) else error.__cause__ or error
    reason = address.hidden(str(getattr(cause, "orig", None) or cause).strip().partition("\n")[0])
    if isinstance(error, ImportError):
        module = getattr(cause, "name", None) or ""
        hint = f"pip install {DRIVERS.get(module, module)}, or take a SQLite file or a journal file."
        return InputError(f"no driver for {address.shown} is installed: {reason}", field="study", hint=hint)
    if isinstance(error, NoSuchModuleError):
        return InputError(f"no database is known by {address.shown}", field="study", expected=EXPECTED)
    if _unreachable(cause):
        if "locked" in reason:
            hint = "Another process has held it for long: end that, or take a server's database for many processes."
        else:
            hint = "See that it is there and may be written to, then start the same command again."
        return RunError(f"can't read or write the study at {address.shown}: {reason}", hint=hint)
    if opening:
        message = f"{address.shown} holds no study that can be read: {reason or type(cause).__name__}"
        return InputError(message, field="study", hint="Name another file or database, or make this one anew.")
    message = f"the study at {address.shown} can't be read any more: {reason or type(cause).__name__}"
    return RunError(message, hint="Somebody else has written to it. Name another one, with --fresh.")


def _unreachable(cause: BaseException) -> bool:
    """Whether a storage can't be reached, in place of holding something else than a study."""
    from sqlalchemy.exc import DatabaseError, InterfaceError, OperationalError
    from sqlalchemy.exc import TimeoutError as PoolTimeout

    if isinstance(cause, OSError | OperationalError | InterfaceError | PoolTimeout):
        return True
    return isinstance(cause, DatabaseError) and "not a database" not in str(cause) and "malformed" not in str(cause)
