"""One process at a time, of all that share a file system: who comes second finds what the first has made, or
makes something else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

NOTICE = 30.0
"""Seconds of waiting until it is said for what."""


@contextmanager
def alone(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Wait until no other process makes `path`, a file or a folder; `waiting` is called if there is one, and
    after half a minute whoever waits is told for what. The system takes the lock, which lies beside it, from
    a process that dies."""
    lock = _lock_of(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        waiting()
        _wait(lock)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def unless_taken(path: Path) -> Iterator[bool]:
    """The same without waiting: whether `path` is this process's to make, or another one is at it."""
    lock = _lock_of(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _wait(lock: FileLock) -> None:
    """However long that takes: what another process makes may take hours."""
    try:
        lock.acquire(timeout=NOTICE)
    except Timeout:
        tqdm.write(
            f"waiting for another process, which holds {lock.lock_file}; if that was stopped, let it go on, "
            "or end it",
            file=sys.stderr,
        )
        lock.acquire()


def _lock_of(path: Path) -> FileLock:
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))
