"""Whether a split is the one that was released: counts, order and line ends, and in words which check failed.

A copy that is cut, that lost its blank rows or that has another line end gives other tokens and so another
perplexity, and another set of the same name gives a wrong one.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from data.errors import InputError
from data.fields import Passages
from data.known import KNOWN, Counts, Known

_SPLITS = {
    "train": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}


def digest_of(rows: Sequence[str]) -> str:
    """Sixteen hexadecimal digits over the rows without the spaces and line ends around them: the same for a
    file's lines and for the Hub's rows."""
    return hashlib.sha256("\n".join(row.strip(" \n") for row in rows).encode()).hexdigest()[:16]


def difference(passages: Passages, counts: Counts) -> str:
    """The first check that fails, in words; empty where all agree."""
    rows = passages.parts
    kind = f"{passages.kind}s"
    if returns := sum("\r" in row for row in rows):
        return f"{returns:,} of its {len(rows):,} {kind} hold carriage returns (CRLF line ends), not one"
    if len(rows) != counts.rows:
        blank = "" if any(not row.strip() for row in rows) else ", and none of them is blank"
        return f"it has {len(rows):,} {kind}, not {counts.rows:,}{blank}"
    words = sum(len(row.split()) + 1 for row in rows)
    if words != counts.words:
        return f"it has {words:,} words with one <eos> a row, not {counts.words:,}"
    if counts.unordered and digest_of(sorted(row.strip(" \n") for row in rows)) != counts.unordered:
        return "its words differ, though there are as many"
    if not in_order(rows, counts):
        return "its rows are in another order"
    size = len("".join(rows).encode())
    wanted = counts.file_bytes if passages.kind == "line" else counts.row_bytes
    if wanted and size != wanted:
        return f"its {kind} hold {size:,} bytes, not {wanted:,}: spaces or line ends differ"
    return ""


def in_order(rows: Sequence[str], counts: Counts) -> bool:
    """Whether the rows come as they were released, as far as that is known."""
    if counts.digest:
        return digest_of(rows) == counts.digest
    return not counts.first or counts.first == next((row.strip() for row in rows if row.strip()), "")


def confirm(known: Known, split: str, passages: Passages, where: str, mend: str) -> str:
    """A note for the corpus's source: which set this is, under which licence, and that it was checked.

    Only lines of train in another order, on which nothing is reported, are let pass, with a note that says
    so. Raises InputError, which names the first check that failed and ends in `mend`, for any other
    difference.
    """
    of = f"{known.title}, {known.licence}"
    if split not in known.counts:
        return of
    counts = known.counts[split]
    failed = difference(passages, counts)
    if not failed:
        as_released = "as released" if counts.digest else "counts as released"
        return f"{of}; {as_released}: {counts.rows:,} rows, {counts.words:,} words with <eos>"
    if split == "train" and not in_order(passages.parts, counts) and failed.endswith("another order"):
        return (
            f"{of}; all rows, BUT IN ANOTHER ORDER than released: training windows differ from other copies'"
        )
    raise InputError(f"{where} is not {split} of {known.title} as released: {failed}; {mend}")


def confirm_file(path: Path, passages: Passages) -> str:
    """`confirm` for a local file that is named like a released one, `wiki.test.raw` or `ptb.train.txt`, or
    that lies in a folder called like a set, `wikitext-2-raw-v1/test-00000-of-00001.parquet`; empty for any
    other."""
    folder = _bare(path.absolute().parent.name)
    released = re.fullmatch(r"(\w+)\.(train|valid|test)\.(\w+)", path.name.lower())
    if released:
        stem, word, ending = released.groups()
        sets = [known for known in KNOWN if (known.stem, known.ending) == (stem, ending)]
        sets = [known for known in sets if _bare(known.title.split(",")[0]) in folder] or sets
        misnamed = path.name
    else:
        words = [word for word in re.findall("[a-z]+", path.name.lower()) if word in _SPLITS]
        shards = re.search(r"-of-(\d+)", path.name)
        alone = shards is None or int(shards[1]) == 1  # one of several has no counts of its own
        sets = _called(folder) if len(words) == 1 and alone else []
        word, misnamed = (words or [""])[0], f"the folder {path.absolute().parent.name}"
    if not sets:
        return ""
    split = _SPLITS[word]
    right = [known for known in sets if not difference(passages, known.counts[split])]
    nearest = min(sets, key=lambda known: abs(known.counts[split].rows - len(passages)))
    mend = (
        f"take the released {nearest.released_as}, or rename {misnamed} where it is meant to be another text"
    )
    return confirm((right or [nearest])[0], split, passages, str(path), mend)


def _called(folder: str) -> list[Known]:
    """The sets that a bare folder name is a name of; WikiText alone says neither size nor form."""
    return [
        known
        for known in KNOWN
        if known.counts
        and folder != "wikitext"
        and folder in (_bare(known.title.split(",")[0]), *(_bare(name) for name in known.names))
    ]


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
