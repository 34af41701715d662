"""Where pair tables are found: a file, a finished run's folder, or what lies beside them."""

from __future__ import annotations

from pathlib import Path

import data
from data.errors import InputError
from nas.pair_table import PairTable, read_pairs

TABLE = "pairs.parquet"
"""The table that a finished run leaves in its folder."""
DEMO = Path(data.__path__[0]) / "pairs" / "demo.parquet"
"""Pairs of the embedded parent."""


def open_table(path: Path) -> PairTable:
    """The table at a path, which is a Parquet file or the folder of a finished run.

    Raises `InputError` where there is none.
    """
    file = path / TABLE if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"{path} holds no {TABLE}; give a finished run of experiments.compress, or a pair table"
            if path.is_dir()
            else f"there is no pair table {path}; make one with experiments.build_pairs"
        )
    return read_pairs(file)


def sibling(path: Path, kind: str) -> PairTable | None:
    """The table beside this one whose name ends in -`kind`, if there is one."""
    beside = path.with_name(f"{path.stem}-{kind}.parquet")
    return read_pairs(beside) if path.is_file() and beside.is_file() else None
