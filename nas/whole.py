"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import InputError


@contextmanager
def whole(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A path beside `out`, for a file or a folder, that takes its place at the end if nothing goes wrong;
    what was there until then is replaced, or stays if anything does.

    Raises `InputError` if nothing can be written there, or, without `replace`, something is there already.
    """
    out = out.absolute()
    if not replace and (out.exists() or out.is_symlink()):
        raise InputError(f"{out} is there already; choose another place")
    partial, former = (out.with_name(f".{out.name}.{word}") for word in ("partial", "former"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _tidy(out, partial, former)  # after one that was killed
        yield partial
        if out.exists():
            out.rename(former)
        partial.rename(out)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.strerror or error}); choose another place"
        ) from error
    finally:
        _tidy(out, partial, former)


def _tidy(out: Path, partial: Path, former: Path) -> None:
    """Remove what is half, and what was there before too unless it is still the only one."""
    _remove(partial)
    if former.exists() and not out.exists():
        former.rename(out)
    _remove(former)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists() or path.is_symlink():
        path.unlink()
