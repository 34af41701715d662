"""The beginning of a large data set of the Hub, kept on disk after it was streamed once.

One file of JSON lines for a data set and a field, in the folder `secateur` of the cache of `datasets`
(`HF_DATASETS_CACHE`, by default below `HF_HOME`): it moves with that cache to a machine without a network.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.json_text import from_json


@dataclass(frozen=True)
class Streamed:
    """Rows by split, with no more columns than the field needs, read at a `revision` (empty: not known).

    `limit` is how many characters of a split were asked for (0: it was read whole, not streamed),
    `characters` at how many it was cut off, 0 where it came to its end before.
    """

    name: str
    field: str
    limit: int
    revision: str
    characters: Mapping[str, int]
    rows: Mapping[str, list[dict[str, Any]]]


def size_of(value: Any) -> int:
    """The characters in a row, however its texts are nested."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(size_of, value.values()))
    return sum(map(size_of, value)) if isinstance(value, list) else 0


def kept(name: str, field: str, limit: int) -> Streamed | None:
    """What `keep` kept, None where there is nothing whole."""
    path = _path(name, field, limit)
    try:
        with path.open(encoding="utf-8") as file:
            head = from_json(next(file))
            rows: dict[str, list[dict[str, Any]]] = {split: [] for split in head["rows"]}
            for line in file:
                split, row = from_json(line)
                rows[split].append(row)
        found = Streamed(name, field, limit, str(head["revision"]), head["characters"], rows)
        whole = {split: len(each) for split, each in rows.items()} == head["rows"]
        counted = all(type(found.characters[split]) is int for split in rows)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None
    return found if whole and counted else None


def keep(streamed: Streamed) -> None:
    """Write it whole or not at all; InputError where the cache cannot be written."""
    path = _path(streamed.name, streamed.field, streamed.limit)
    head = {
        "name": streamed.name,
        "field": streamed.field,
        "revision": streamed.revision,
        "characters": dict(streamed.characters),
        "rows": {split: len(rows) for split, rows in streamed.rows.items()},
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with beside.open("w", encoding="utf-8") as file:
                file.write(json.dumps(head) + "\n")
                for split, rows in streamed.rows.items():
                    file.writelines(json.dumps([split, row]) + "\n" for row in rows)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"what was streamed of {streamed.name} cannot be kept in {path.parent} ({error.strerror}): set "
            "HF_DATASETS_CACHE to a folder that can be written"
        ) from error


def _path(name: str, field: str, limit: int) -> Path:
    import datasets

    key = hashlib.sha256(json.dumps([name, field, limit]).encode()).hexdigest()[:12]
    words = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)
    return Path(datasets.config.HF_DATASETS_CACHE) / "secateur" / f"{words}-{key}.jsonl"
