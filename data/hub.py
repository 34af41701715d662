"""Text data sets of the Hugging Face Hub, by `owner/name[:config]`.

What is read whole is kept by the library `datasets` in its cache. What is streamed is kept here, beside that
(`data/streamed.py`), so that in both cases a second run, with or without a network, reads the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from data.errors import InputError, first_line
from data.fields import DOCUMENT, TEXT_FIELD, Field, Passages
from data.files import cut
from data.known import Known
from data.released import confirm
from data.streamed import Streamed, keep, kept, size_of

STREAM_ABOVE_BYTES = 2_000_000_000
STREAMED_CHARACTERS = 64_000_000
_SPLITS = ("train", "validation", "test")


def read_hub(
    name: str, field: Field = TEXT_FIELD, known: Known | None = None
) -> tuple[dict[str, Passages], dict[str, str]]:
    """The rows of each split, and a sentence on where each came from.

    Of a data set of more than 2 GB (or of unknown size) the first 64 million characters of each split are
    streamed instead of downloading it, of a `known` one as many as it says. What is read whole of a known one
    is checked against its counts. A split the data set lacks is cut from one it has, which the sentence says.
    Raises InputError when the data set cannot be had: offline, unknown, script-based, without the field, not
    as released.
    """
    limit = known.characters if known and known.characters else STREAMED_CHARACTERS
    earlier = kept(name, field.name, limit)
    try:
        found = earlier or _read(name, field, limit, known)
    except InputError:
        raise
    except Exception as error:  # whatever the many layers below raise, the person's way out is the same
        raise InputError(_sentence(name, error, _instead(known))) from error
    passages, source = {}, {}
    for split, rows in found.rows.items():
        where = f"Hub {name}, split {split}"
        passages[split] = _passages(rows, field, where)
        source[split] = _source(name, split, field, found, passages[split], known)
        if known is not None:
            whole = found.characters[split] == 0
            note = confirm(known, split, passages[split], where, _again(name)) if whole else _of(known)
            source[split] += f"; {note}"
    if earlier is None and found.limit:  # after all that could be wrong with it
        keep(found)
    return _complete(name, passages, source)


def read_rows(name: str, split: str) -> list[dict[str, Any]]:
    """All rows of one split of `owner/name[:config]`; InputError when they cannot be had."""
    dataset_id, _, config = name.partition(":")
    try:
        import datasets

        return list(datasets.load_dataset(dataset_id, config or None, split=split))
    except Exception as error:  # as above
        raise InputError(_sentence(name, error, "give the folder of its files")) from error


def _read(name: str, field: Field, limit: int, known: Known | None) -> Streamed:
    """The columns that the field needs, of every split that there is."""
    import datasets

    dataset_id, _, config = name.partition(":")
    files = dict(known.files) if known and known.files else None
    place: dict[str, Any] = {"path": dataset_id, "name": config or None}
    if files:  # a config says which files there are: one or the other
        place = {"path": dataset_id, "data_files": files}
    builder = datasets.load_dataset_builder(**place)
    size = builder.info.dataset_size
    stream = known.characters > 0 if known else not size or size > STREAM_ABOVE_BYTES
    loaded: Any = datasets.load_dataset(**place, streaming=stream)
    theirs = known.splits if known else {split: split for split in _SPLITS}
    there = {split: loaded[called] for split, called in theirs.items() if called in loaded}
    if not there:
        raise InputError(
            f"{name} has none of the splits {', '.join(theirs.values())}, only {', '.join(loaded)}"
        )
    rows, taken = {}, {}
    for split, each in there.items():
        rows[split], cut_short = _first(each, field, limit if stream else 0, f"Hub {name}, split {split}")
        taken[split] = limit if cut_short else 0
    return Streamed(name, field.name, limit if stream else 0, _revision(builder), taken, rows)


def _first(
    rows: Iterable[Mapping[str, Any]], field: Field, limit: int, where: str
) -> tuple[list[dict[str, Any]], bool]:
    """The columns that are needed, until they hold so many characters, and whether rows may be left."""
    taken: list[dict[str, Any]] = []
    characters = 0
    for row in rows:
        if not taken:  # what has no such field is not read to its end
            _passages([row], field, where)
        taken.append({name: row[name] for name in field.of(row)})
        characters += size_of(taken[-1])
        if limit and characters >= limit:
            return taken, True
    return taken, False


def _passages(rows: Iterable[Mapping[str, Any]], field: Field, where: str) -> Passages:
    try:
        return field.passages((f"row {at:,} of {where}", row) for at, row in enumerate(rows))
    except InputError as error:
        raise InputError(str(error).replace("PATH#FIELD", "ID#FIELD")) from error


def _source(
    name: str, split: str, field: Field, found: Streamed, passages: Passages, known: Known | None
) -> str:
    part = "all" if not found.characters[split] else f"first {found.characters[split]:,} characters:"
    revision = f", revision {found.revision[:12]}" if found.revision else ""
    what = f"field {field.name}" if passages.kind == DOCUMENT else f"{passages.kind}s"
    called = f"split {known.splits.get(split, split)}" if known else f"split {split}"
    if known and known.files:
        called = f"file {known.files[split]}"
    return f"{part} {len(passages):,} rows of Hub {name}{revision}, {called}, {what}"


def _revision(builder: Any) -> str:
    """The commit that a data set was read at; empty for what is no repository of the Hub."""
    found = str(builder.hash or "")
    return found if re.fullmatch("[0-9a-f]{40}", found) else ""


def _complete(
    name: str, passages: dict[str, Passages], source: dict[str, str]
) -> tuple[dict[str, Passages], dict[str, str]]:
    """Cut the splits that are missing out of those that are there."""
    if "train" not in passages or len(passages) == 1:
        there = next(iter(passages))
        splits = dict(zip(_SPLITS, cut(passages[there], name), strict=True))
        return splits, {split: f"{source[there]}; cut 90/5/5 by rows" for split in _SPLITS}
    for missing, other in (("test", "validation"), ("validation", "test")):
        if missing not in passages:
            whole, half = passages[other], len(passages[other]) // 2
            first, second = whole[:half], whole[half:]
            passages |= {"validation": first, "test": second}
            halved = f"{source[other]}; rows halved"
            source |= {"validation": f"{halved}, first half", "test": f"{halved}, second half"}
    return passages, source


def _of(known: Known) -> str:
    return f"{known.title}, {known.licence}"


def _again(name: str) -> str:
    return f"delete {name} from the cache of datasets to load it anew, or pass the folder of its files"


def _instead(known: Known | None) -> str:
    files = (
        f"pass the folder of {known.released_as}" if known and known.stem else "pass a local file or folder"
    )
    return f"{files}, 'demo', or run once where there is a network, which fills the cache"


def _sentence(name: str, error: Exception, instead: str) -> str:
    reason = first_line(error)
    if "scripts are no longer supported" in reason:
        return f"{name} is a script-based data set, which datasets 4 refuses: pass a folder of its text files"
    return f"{name} is no local path and could not be read from the Hub ({reason}): {instead}"
