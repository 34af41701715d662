"""Local files as text: plain text kept byte for byte, JSON and Parquet as documents or conversations."""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from data.errors import InputError, first_line
from data.fields import BLANK_LINE, DOCUMENT, LINE, TEXT_FIELD, Field, Passages
from data.json_text import rows_from_json, said

TEXT = (".txt", ".raw", ".tokens")
FORMS = (*TEXT, ".jsonl", ".json", ".parquet")
ROWS = "rows"
"""In place of the field of a text file: its lines as the Hub has them, blank ones empty, as documents."""


def read_passages(path: Path, field: Field = TEXT_FIELD) -> Passages:
    """A file of one of the `FORMS`: lines of a text file, or what `field` says of the rows of JSON lines, a
    JSON list or Parquet.

    Raises InputError when the file is of another form, is no UTF-8, has no such field, or holds no text.
    """
    form = path.suffix.lower()
    if form in TEXT:
        passages = Passages(_lines(path), LINE)
        if field.name == ROWS:
            passages = Passages(tuple(line if line.strip() else "" for line in passages.parts), DOCUMENT)
    elif form == ".jsonl":
        passages = field.passages(json_lines(path))
    elif form == ".json":
        passages = field.passages(_json_list(path))
    elif form == ".parquet":
        passages = field.passages(_parquet_rows(path, field))
    else:
        raise InputError(
            f"{path} ends in {form or 'nothing'!r}: pass a file of one of the forms {', '.join(FORMS)}"
        )
    if not any(part.strip() for part in passages.parts):
        raise InputError(f"{path} holds no text ({path.stat().st_size:,} bytes): pass a file with text in it")
    return passages


def join(passages: list[Passages]) -> str:
    """The text of several files one after another; they are parted by a blank line unless all are of one kind
    whose parts touch."""
    kinds = {part.kind for part in passages}
    if len(kinds) == 1:
        return Passages(tuple(part for each in passages for part in each.parts), kinds.pop()).text
    return BLANK_LINE.join(part.text for part in passages)


def cut(passages: Passages, name: str) -> tuple[Passages, Passages, Passages]:
    """Train, validation and test: a contiguous 90/5/5 percent of the characters, cut between two passages.

    Raises InputError, which speaks of them as `name`, when there are fewer than three passages or a split
    would hold no text.
    """
    if len(passages) < 3:
        raise InputError(
            f"{name} holds {len(passages)} {passages.kind}(s), which cannot be cut into train, validation "
            "and test: pass at least 3, or a folder with one file for each split"
        )
    sizes = [len(part) for part in passages.parts]
    total = sum(sizes)
    middles = [end - size / 2 for end, size in zip(accumulate(sizes), sizes, strict=True)]
    first = sum(middle < 0.90 * total for middle in middles)
    first = min(max(first, 1), len(passages) - 2)
    second = sum(middle < 0.95 * total for middle in middles)
    second = min(max(second, first + 1), len(passages) - 1)
    splits = (passages[:first], passages[first:second], passages[second:])
    if not all(split.text.strip() for split in splits):
        raise InputError(
            f"{name} holds {len(passages)} {passages.kind}(s) whose last tenth has too little text for "
            "validation and test: pass a longer file, or a folder with one file for each split"
        )
    return splits


def read_text(path: Path) -> str:
    """A file's text; InputError where it cannot be read or is not UTF-8."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): pass a readable file") from error
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: byte {error.start:,} of {len(raw):,} is 0x{raw[error.start]:02x}; "
            "convert the file to UTF-8 first"
        ) from error


def _lines(path: Path) -> tuple[str, ...]:
    *whole, rest = read_text(path).split("\n")
    return (*(line + "\n" for line in whole), *([rest] if rest else []))


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSON lines, each with the words `line 7 of PATH`; blank lines are passed over.

    Raises InputError at a line that is no JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = rows_from_json(line)
        except ValueError as error:
            raise InputError(
                f"line {number:,} of {path} is no JSON ({said(error)}): one object a line is needed"
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"line {number:,} of {path} is a {type(row).__name__}: one JSON object a line is needed"
            )
        yield f"line {number:,} of {path}", row


def _json_list(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list; of a file that does not begin as one, those of its lines."""
    text = read_text(path)
    if not text.lstrip().startswith("["):
        yield from json_lines(path)
        return
    try:
        rows = rows_from_json(text)
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({said(error)}): a list of objects is needed") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(
                f"item {number:,} of {path} is a {type(row).__name__}: a list of objects is needed"
            )
        yield f"item {number:,} of {path}", row


def _parquet_rows(path: Path, field: Field) -> Iterator[tuple[str, dict[str, Any]]]:
    from pyarrow import ArrowException, parquet

    try:
        columns = parquet.read_schema(path).names
        wanted = [name for name in field.of(columns) if name in columns]
        rows = parquet.read_table(path, columns=wanted).to_pylist() if wanted else [dict.fromkeys(columns)]
    except (OSError, ValueError, OverflowError, ArrowException) as error:
        raise InputError(f"{path} is no Parquet file that can be read: {first_line(error)}") from error
    for number, row in enumerate(rows):
        yield f"row {number:,} of {path}", row
