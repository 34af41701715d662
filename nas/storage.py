"""Where pairs are kept: a journal file, SQLite or a database server, safe for any number of processes.

What Optuna's storages need for that is added here. A journal: a lock that the system itself takes from a
process that dies, and half a record, which a writer killed in its middle left, cut off before the next is
written. SQLite: its write lock from the beginning of every transaction, or two processes would be handed
the same number. A server that is away for a while: what was asked of it is asked again. Who waits for a
lock for long says so, and does not wait for ever: a process that is stopped keeps what it holds.
"""

from __future__ import annotations

import os
import random
import re
import sys
import time
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy import Connection, event
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    PendingRollbackError,
    ProgrammingError,
)
from tqdm import tqdm

from data.errors import InputError, first_line
from data.json_text import from_json

Result = TypeVar("Result")
PATIENCE = 600.0
"""Seconds that a database server may be away, or another process may hold a lock."""
PATIENT: ContextVar[float] = ContextVar("patient", default=PATIENCE)
"""The seconds that hold for what is being done."""
NOTICE, ATTEMPT = 30.0, 1.0
"""Seconds until it is said that one waits for a lock, and that an attempt at SQLite's takes."""
SAID: set[str] = set()
"""The locks of which this process has said that it waits for them."""
AWAY = (OperationalError, InterfaceError, PendingRollbackError)
"""What a database that is away, busy or back again makes SQLAlchemy raise."""
OPENING = 20.0
"""Seconds for a database to be there when it is opened."""


def open_storage(location: str) -> BaseStorage:
    """An Optuna storage: a database URL (`sqlite:///…`, `postgresql://…`) or the path of a journal file.

    Raises `InputError` if it cannot be opened or read.
    """
    try:
        if "://" in location:
            return _database(location)
        path = Path(location).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_records(path)
        lock = JournalLock(path)
        if _torn(path):
            lock.acquire()
            lock.release()
        return JournalStorage(JournalFileBackend(str(path), lock))
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(
            f"the pair store {shown(location)} needs the package {error.name}, which is not installed; run "
            "python -m pip install -e '.[postgres]'"
        ) from error
    except Exception as error:
        error = _behind(error)
        if isinstance(error, AWAY) and not location.startswith("sqlite"):
            mend = "start the server, or check the URL"
        elif isinstance(error, ImportError | NoSuchModuleError):
            mend = (
                "give the path of a journal file, sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
            )
        elif isinstance(error, OSError):
            mend = "give a place where files can be written"
        else:
            mend = "move it away to start afresh"
        raise InputError(
            f"the pair store {shown(location)} cannot be read ({first_line(error)}); {mend}"
        ) from error


def _database(location: str) -> RDBStorage:
    """Workers that all find an empty database make its tables at the same time: who loses looks again. So
    does who comes while a server is being started."""
    begun = time.monotonic()
    while True:
        try:
            storage = _sqlite(location) if location.startswith("sqlite") else RDBStorage(location)
        except (StorageInternalError, IntegrityError, ProgrammingError, OperationalError) as error:
            reason = _behind(error)
            raced = isinstance(reason, IntegrityError) or "already exists" in str(reason)
            absent = isinstance(reason, AWAY) and not location.startswith("sqlite")
            if not (raced or absent) or time.monotonic() - begun > OPENING:
                raise
            time.sleep(random.uniform(0.1, 0.5))
        else:
            weakref.finalize(storage, storage.engine.dispose)  # its connections are closed with it
            return storage


def _sqlite(location: str) -> RDBStorage:
    storage = RDBStorage(location, engine_kwargs={"connect_args": {"timeout": PATIENCE}})

    @event.listens_for(storage.engine, "connect")
    def begin_by_hand(connection: object, _: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]
        connection.execute("PRAGMA journal_mode=WAL")  # type: ignore[attr-defined]
        connection.execute(f"PRAGMA busy_timeout={1000 * ATTEMPT:.0f}")  # type: ignore[attr-defined]

    @event.listens_for(storage.engine, "begin")
    def begin(connection: Connection) -> None:
        def attempt() -> bool:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            except OperationalError as error:
                if "is locked" not in str(error):
                    raise
                return False
            return True

        _acquire(location, attempt)

    storage.engine.dispose()  # of connections from before
    return storage


class JournalLock(JournalFileOpenLock):
    """One writer at a time, who begins on a new line. Not Optuna's own lock, which waits half a minute for a
    process that died with it, and may then be taken by two."""

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._path = journal.with_name(f".{journal.name}.lock")  # Optuna's is a link to the journal
        self._lock = FileLock(self._path)

    def acquire(self) -> bool:
        """Wait for it, and mend the end of the journal."""

        def attempt() -> bool:
            try:
                self._lock.acquire(timeout=min(ATTEMPT, PATIENT.get()))
            except Timeout:
                return False
            return True

        _acquire(str(self._path), attempt)
        try:
            _end_last_line(self._journal)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        """Let the next one write."""
        self._lock.release()


def _acquire(lock: str, attempt: Callable[[], bool]) -> None:
    """Until an attempt succeeds, each of which takes a while; `InputError` if none does for too long."""
    begun = time.monotonic()
    while not attempt():
        waited = time.monotonic() - begun
        if waited > PATIENT.get():
            raise InputError(
                f"another process has held the lock of the pair store for {waited:.0f} seconds ({lock}); let "
                "it go on or end it if it is stopped, and run the same command again"
            )
        if waited > NOTICE and lock not in SAID:
            SAID.add(lock)
            tqdm.write(
                f"waiting for the lock of the pair store ({lock}); a process that is stopped may hold it",
                file=sys.stderr,
            )


def _check_records(journal: Path) -> None:
    """Raise `ValueError` unless every line is a record, or the last one the beginning of a record."""
    *whole, torn = journal.read_bytes().split(b"\n") if journal.exists() else [b""]
    for number, line in enumerate(whole, 1):
        if not isinstance(from_json(line), dict):
            raise ValueError(f"line {number} is no record")
    begin = b'{"op_code"'
    if torn and not torn.startswith(begin[: len(torn)] if whole else begin):
        raise ValueError("its end is no record")


def _torn(journal: Path) -> bool:
    """Whether a journal does not end with a whole line."""
    try:
        with journal.open("rb") as file:
            if not file.seek(0, os.SEEK_END):
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except FileNotFoundError:
        return False


def _end_last_line(journal: Path) -> None:
    """Mend the last line where a writer was killed in the middle of it: a record that is whole is ended,
    half a one cut off, for that pair was not stored. Only the holder of the lock may do this."""
    if not _torn(journal):
        return
    torn = journal.read_bytes().rpartition(b"\n")[2]
    try:
        from_json(torn)
    except ValueError:
        os.truncate(journal, journal.stat().st_size - len(torn))
    else:
        with journal.open("ab") as file:
            file.write(b"\n")


def patiently(action: Callable[[], Result], patience: float = PATIENCE) -> Result:
    """What `action` returns, tried again while a database is away or busy.

    It may have been carried out before its answer was lost, and is then carried out twice. Raises
    `InputError` if the database stays away, or a lock is held, for `patience` seconds, or there is no room
    left to write.
    """
    token = PATIENT.set(patience)
    try:
        return _patiently(action, patience)
    finally:
        PATIENT.reset(token)


def _patiently(action: Callable[[], Result], patience: float) -> Result:
    pause, begun = 0.1, time.monotonic()
    while True:
        try:
            return action()
        except (StorageInternalError, DBAPIError) as error:
            reason = _behind(error)
            if not isinstance(reason, AWAY) or _is_full(reason):
                raise InputError(
                    f"the pair store cannot be written ({first_line(reason)}); what was measured before is "
                    "kept, and the same command goes on from there"
                ) from error
            if time.monotonic() - begun > patience:
                raise InputError(
                    f"the pair store has been away for {patience:.0f} seconds ({first_line(reason)}); run "
                    "the same command again once it is back"
                ) from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)
        except OSError as error:
            raise InputError(
                f"the pair store cannot be written ({error.strerror or error}); make room, and run the same "
                "command again: what was measured before is kept"
            ) from error


def _behind(error: Exception) -> Exception:
    """What a database said, where Optuna raises an error of its own for it."""
    cause = error.__cause__
    return cause if isinstance(error, StorageInternalError) and isinstance(cause, Exception) else error


def _is_full(error: Exception) -> bool:
    return "is full" in str(error) or "No space left" in str(error)


def shown(location: str) -> str:
    """A location as it may be printed: without the password of a URL."""
    return re.sub(r"(://[^/@]*?):[^/@]*@", r"\1:***@", location)
