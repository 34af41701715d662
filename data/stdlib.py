"""The demo corpus: the source text of the running Python's standard library, split by module file.

The text is read from the interpreter at run time and is never copied into the project. Left out is what
differs between two installations of the same Python (build settings, parts that distributions ship apart),
and what is no prose of code (tests, generated tables). Two machines with the same Python release read the
same text.
"""

import hashlib
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from data.errors import InputError

SPLITS = ("train", "validation", "test")

_TESTS = {"test", "tests", "idle_test"}
_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "lib-dynload", "__pycache__", "__phello__"}
_TABLES = {"encodings", "pydoc_data"}
_SHIPPED_APART = {"distutils", "ensurepip", "idlelib", "lib2to3", "msilib", "tkinter", "turtledemo", "venv"}
_LEFT_OUT_FOLDERS = _TESTS | _NOT_THE_LIBRARY | _TABLES | _SHIPPED_APART
_LEFT_OUT_FILES = ("_sysconfigdata_", "_sysconfig_vars_", "sitecustomize", "turtle.py")
_TWENTIETHS = {0: "test", 1: "validation"}


@dataclass(frozen=True)
class Module:
    """One module file: its name relative to the library's folder (with `/`), its split and its text."""

    name: str
    split: str
    text: str


def split_of(name: str) -> str:
    """The split of a module file, by a hash of its relative name alone: about 90/5/5 of the files."""
    digest = hashlib.sha512(name.encode()).digest()
    return _TWENTIETHS.get(int.from_bytes(digest[:8], "big") % 20, "train")


@cache
def stdlib_modules() -> tuple[Module, ...]:
    """Every module file of the demo corpus in the order of the names, line ends as `\\n`.

    Raises InputError where the interpreter keeps no library source on disk (a zipped or frozen Python).
    """
    root = Path(sysconfig.get_path("stdlib"))
    modules = tuple(Module(name, split_of(name), text) for name, text in _sources(root))
    if not modules:
        raise InputError(
            f"the running Python keeps 0 source files of its library under {root}, so there is no demo "
            "corpus: pass a text file instead"
        )
    return modules


def stdlib_documents(split: str) -> list[str]:
    """The texts of one split, one document a module file, in the order of the names."""
    if split not in SPLITS:
        raise InputError(f"{split!r} is no split: use one of {', '.join(SPLITS)}")
    return [module.text for module in stdlib_modules() if module.split == split]


def _sources(root: Path) -> Iterator[tuple[str, str]]:
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    for name in names:
        *folders, file = name.split("/")
        if any(folder in _LEFT_OUT_FOLDERS or folder.startswith("config-") for folder in folders):
            continue
        if file.startswith(_LEFT_OUT_FILES):
            continue
        try:
            with tokenize.open(str(root / name)) as source:  # honours the coding line, line ends become \n
                text = source.read()
        except (SyntaxError, UnicodeDecodeError):
            continue
        if text.strip():
            yield name, text
