"""Local files as text: plain text kept byte for byte, JSON lines and Parquet as documents."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from data.errors import InputError

TEXT = (".txt", ".raw", ".tokens")
FORMS = (*TEXT, ".jsonl", ".parquet")
BLANK_LINE = "\n\n"


@dataclass(frozen=True)
class Passages:
    """The parts of a text at which it may be cut, and what stands between two of them.

    Lines keep their own ends and are joined by nothing, so that the whole is the file byte for byte;
    documents are joined by a blank line.
    """

    parts: tuple[str, ...]
    kind: str  # "line" or "document"

    @property
    def text(self) -> str:
        """The whole text."""
        return ("" if self.kind == "line" else BLANK_LINE).join(self.parts)

    def __getitem__(self, span: slice) -> "Passages":
        return Passages(self.parts[span], self.kind)

    def __len__(self) -> int:
        return len(self.parts)


def read_passages(path: Path, field: str = "text") -> Passages:
    """A file of one of the `FORMS`: lines of a text file, or the documents in `field` of JSON lines or
    Parquet.

    Raises InputError when the file is of another form, is no UTF-8, has no such field, or holds no text.
    """
    form = path.suffix.lower()
    if form in TEXT:
        passages = Passages(_lines(path), "line")
    elif form == ".jsonl":
        passages = Passages(_json_documents(path, field), "document")
    elif form == ".parquet":
        passages = Passages(_parquet_documents(path, field), "document")
    else:
        raise InputError(
            f"{path} ends in {form or 'nothing'!r}: pass a file of one of the forms {', '.join(FORMS)}"
        )
    if not any(part.strip() for part in passages.parts):
        raise InputError(f"{path} holds no text ({path.stat().st_size:,} bytes): pass a file with text in it")
    return passages


def join(passages: list[Passages]) -> str:
    """The text of several files one after another; line files touch, documents are parted by a blank line."""
    lines_only = all(part.kind == "line" for part in passages)
    return ("" if lines_only else BLANK_LINE).join(part.text for part in passages)


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
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"line {number:,} of {path} is no JSON ({error.msg}): one object a line is needed"
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"line {number:,} of {path} is a {type(row).__name__}: one JSON object a line is needed"
            )
        yield f"line {number:,} of {path}", row


def _json_documents(path: Path, field: str) -> tuple[str, ...]:
    return tuple(_string(row.get(field), field, where, list(row)) for where, row in json_lines(path))


def _parquet_documents(path: Path, field: str) -> tuple[str, ...]:
    import pandas

    try:
        table = pandas.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise InputError(
            f"{path} is no Parquet file that can be read: {str(error).splitlines()[0]}"
        ) from error
    columns = [str(column) for column in table.columns]
    values = table[field].tolist() if field in columns else [None]
    return tuple(_string(value, field, f"row {row:,} of {path}", columns) for row, value in enumerate(values))


def _string(value: object, field: str, where: str, fields: list[str]) -> str:
    if isinstance(value, str):
        return value
    if field in fields:
        raise InputError(
            f"{field!r} in {where} is a {type(value).__name__} and no text: name a text field as PATH#FIELD"
        )
    raise InputError(
        f"{where} has no {field!r}, only {', '.join(fields[:12])}: name the text field as PATH#FIELD"
    )
